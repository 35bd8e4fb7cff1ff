"""Text from a model: prefill in parallel by `forward`, then decode one character at a time by `step`.

    read     ids -> a `Position`: all that the model remembers of a text, as a value to keep, copy, save, or go on from
    Decoder  goes on from N positions at once
    write    texts, log-probabilities and stop strings of a Decoder's N samples
    generate the characters of one sample: what most programs need

The filters and `choose` are pure functions of logits (N, V) in numpy, where one row takes microseconds.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from lm.model import LanguageModel, ModelState
from lm.sampling.filters import Options, choose
from lm.sampling.packed import Packed

PREFILL = 4096
"""Characters of the prompt that one forward pass reads: bounds the memory, whatever the prompt's length."""


ROWS = {"cpu": 4}
"""Rows in each step of a plain model, by device. Its matrix products round differently at every batch size, so that a
sample's bits would depend on the number of samples; in groups of one size, padded, they do not. On a CPU 4 rows take
1.3 times as long as one."""


ROWS_ELSEWHERE = 64


BLOCK = 256
"""Random numbers of each stream that are drawn at a time."""


class Engine(Protocol):
    """What can be sampled from: a `LanguageModel` in eval mode, or a `lm.packed.Packed`."""

    def init_state(self, batch: int) -> ModelState: ...
    def forward(self, ids: Tensor, state: ModelState | None = None) -> tuple[Tensor, ModelState]: ...
    def step(self, ids: Tensor, state: ModelState) -> tuple[Tensor, ModelState]: ...


class Draws:
    """Streams of uniform numbers in [0, 1): number n of sample i is a function of (seed, i, n) alone.

    Args:
        seed: at least 0 and below 2^64.
        samples: whose streams.
        used: numbers of each stream that were drawn before.
    """

    def __init__(self, seed: int, samples: range, used: Sequence[int]) -> None:
        self.count = 0
        self._streams = [self._stream(seed, i, n) for i, n in zip(samples, used, strict=True)]
        self._block = np.empty((len(samples), 0))

    @staticmethod
    def _stream(seed: int, sample: int, used: int) -> np.random.Generator:
        bits = np.random.Philox(key=seed, counter=[0, 0, 0, sample])
        stream = np.random.Generator(bits.advance(used // 4))  # Philox makes four numbers at each count
        stream.random(used % 4)
        return stream

    def take(self, most: int = 1) -> np.ndarray:
        """The next numbers of each stream (n, N), n from 1 to `most`."""
        column = self.count % BLOCK
        if column == 0:
            self._block = np.stack([stream.random(BLOCK) for stream in self._streams])
        taken = self._block[:, column : column + most].T
        self.count += len(taken)
        return taken


class Position(NamedTuple):
    """Where a text stands: all that going on with it needs."""

    state: ModelState
    """after the last character, batch size 1"""
    logits: np.ndarray
    """of the next character, float32 (V,)"""
    drawn: int = 0
    """numbers used of the sample's stream of randomness"""


def _device(model: Engine) -> torch.device:
    return model.init_state(1)[0][0].device


def _numpy(logits: Tensor) -> np.ndarray:
    return logits.float().cpu().numpy()


@torch.inference_mode()
def read(model: Engine, ids: np.ndarray, position: Position | None = None) -> Position:
    """Read ids (n,), n >= 1, from the start or after another text; memory does not grow with n."""
    state, drawn = (position.state, position.drawn) if position else (None, 0)
    for chunk in torch.from_numpy(ids.astype(np.int64)).to(_device(model)).split(PREFILL):
        logits, state = model.forward(chunk[None], state)
    assert state is not None
    return Position(state, _numpy(logits[0, -1]), drawn)


@torch.inference_mode()
def score(model: Engine, ids: np.ndarray, position: Position | None = None) -> tuple[np.ndarray, Position]:
    """The model's log-probability (natural) of each of ids (n,), n >= 1, given those before, and where that leads.

    From the start, the first one is read but has no score: float64 (n - 1,); after a position, (n,).
    """
    scores = []
    for first in range(0, len(ids), PREFILL):
        chunk = torch.from_numpy(ids[first : first + PREFILL].astype(np.int64)).to(_device(model))
        logits, state = model.forward(chunk[None], position.state if position else None)
        logits = logits[0].float()
        before, targets = logits[:-1], chunk[1:]
        if position:
            before = torch.cat([torch.from_numpy(position.logits).to(logits)[None], before])
            targets = chunk
        scores.append(before.log_softmax(-1).gather(1, targets[:, None])[:, 0].double().cpu().numpy())
        position = Position(state, _numpy(logits[-1]), position.drawn if position else 0)
    assert position is not None
    return np.concatenate(scores), position


class Decoder:
    """N texts in the making. Time and memory per character do not grow with what was read or written.

    The last id of the vocabulary, the unknown, is never chosen.

    Args:
        model: what predicts.
        positions: where each text stands; `[position] * N` makes N continuations of one.
        seed: of the streams of randomness. Row i uses that of sample `first + i`, from where its position says.
        first: number of the first sample. What sample i becomes depends neither on `first` nor on N.
    """

    def __init__(self, model: Engine, positions: Sequence[Position], seed: int = 0, first: int = 0) -> None:
        self.model, self.device = model, _device(model)
        self._drawn = [position.drawn for position in positions]
        self._draws = Draws(seed, range(first, first + len(positions)), self._drawn)
        self.logits = np.stack([position.logits for position in positions])  # (N, V)
        plain = isinstance(model, LanguageModel)
        self._size = ROWS.get(self.device.type, ROWS_ELSEWHERE) if plain else len(positions)
        self._first = first % self._size if plain else 0  # sample i has the same place in its group, whatever N
        index = np.arange(-(-(self._first + len(positions)) // self._size) * self._size) - self._first
        padded = [positions[i] for i in index.clip(0, len(positions) - 1)]
        self._groups = [_join([p.state for p in padded[i : i + self._size]]) for i in range(0, len(padded), self._size)]
        self._ids = np.zeros(len(padded), dtype=np.int64)
        self._inputs = torch.from_numpy(self._ids).split(self._size)  # the same memory

    def choose(self, options: Options) -> np.ndarray:
        """The next id of each text (N,). Temperature 0 draws no random numbers."""
        uniform = self._draws.take()[0] if options.temperature else np.empty(0)
        return choose(self.logits[:, :-1], uniform, options)

    @torch.inference_mode()
    def step(self, ids: np.ndarray) -> None:
        """Read the next id of each text (N,)."""
        mine = slice(self._first, self._first + len(ids))
        self._ids[mine] = ids
        parts = []
        for i, group in enumerate(self._inputs):
            logits, self._groups[i] = self.model.step(group.to(self.device), self._groups[i])
            parts.append(logits)
        self.logits = _numpy(torch.cat(parts) if len(parts) > 1 else parts[0])[mine]

    @torch.inference_mode()
    def write(self, options: Options, most: int = 1) -> np.ndarray:
        """Choose and read the next ids of each text (n, N), n from 1 to `most`: what they are does not depend on it.

        A packed model at a mere temperature writes all of them in one native call; otherwise n is 1.
        """
        temperature = options.temperature
        if not isinstance(self.model, Packed) or options != Options(temperature):
            ids = self.choose(options)
            self.step(ids)
            return ids[None]
        uniform = self._draws.take(most) if temperature else np.zeros((most, len(self.logits)))
        self._burst = torch.from_numpy(self.logits), self._groups[0], torch.from_numpy(uniform), temperature
        chosen, logits, self._groups[0] = self.model.write(*self._burst)
        self.logits = logits.numpy()
        return chosen.numpy()

    def position(self, row: int, back: int = 0) -> Position:
        """Where a text stands, or stood before the last `back` of the ids that `write` has just returned.

        A copy, which further steps leave alone.
        """
        drawn = self._drawn[row] + self._draws.count
        if back:
            return self._earlier(row, back, drawn)
        group, place = divmod(self._first + row, self._size)
        return Position(_row(self._groups[group], place), self.logits[row].copy(), drawn)

    @torch.inference_mode()
    def _earlier(self, row: int, back: int, drawn: int) -> Position:
        """A recurrent state cannot be undone: the row is written again, from where the burst began."""
        assert isinstance(self.model, Packed)
        logits, state, uniform, temperature = self._burst
        one = slice(row, row + 1)
        _, logits, state = self.model.write(logits[one], _row(state, row), uniform[:-back, one], temperature)
        return Position(state, logits[0].numpy(), drawn - (back if temperature else 0))


def _row(state: ModelState, row: int) -> ModelState:
    """A copy of one row of a state."""
    return tuple(tuple(part[row : row + 1].clone() for part in layer) for layer in state)


def _join(states: Sequence[ModelState]) -> ModelState:
    """One state of many rows from states of one row each."""
    return tuple(tuple(torch.cat(parts) for parts in zip(*layers, strict=True)) for layers in zip(*states, strict=True))
