"""Decoding: the prompt is read in parallel by `forward`, then each character takes one `step`.

`read` turns ids into a `Position`: the model's state after a text, as a value to keep, copy, save, or continue from. A
`Decoder` continues N positions at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from lm.model import LanguageModel, ModelState
from lm.sampling.filters import SamplingOptions, choose
from lm.sampling.packed import Packed

PREFILL = 4096
"""Characters that one forward pass reads, which bounds the memory for a prompt of any length."""
ROWS = {"cpu": 4}
"""Rows in each step of a plain model, by device. Matrix products round differently at every batch size, so the bits of
a sample would depend on the number of samples; in padded groups of one size they do not. On a CPU 4 rows take 1.3 times
as long as one."""
ROWS_ELSEWHERE = 64
BLOCK = 256
"""Random numbers of each stream that are drawn at a time."""
Engine = LanguageModel | Packed
"""What decodes: a model in eval mode, or a packed copy of it."""


class RandomStreams:
    """Streams of uniform numbers in [0, 1): number n of sample i is a function of (seed, i, n) alone.

    Args:
        seed: at least 0 and below 2^64.
        samples: the samples' numbers.
        used: how many numbers of each stream were drawn before.
    """

    def __init__(self, seed: int, samples: range, used: Sequence[int]) -> None:
        self.count = 0
        self._block = np.empty((len(samples), 0))
        self._streams = []
        for sample, n in zip(samples, used, strict=True):
            bits = np.random.Philox(key=seed, counter=[0, 0, 0, sample])
            stream = np.random.Generator(bits.advance(n // 4))  # Philox makes four numbers at each count
            stream.random(n % 4)
            self._streams.append(stream)

    def draw(self, most: int = 1) -> np.ndarray:
        """The next numbers of each stream (n, N), n from 1 to `most`."""
        column = self.count % BLOCK
        if column == 0:
            self._block = np.stack([stream.random(BLOCK) for stream in self._streams])
        numbers = self._block[:, column : column + most].T
        self.count += len(numbers)
        return numbers


class Position(NamedTuple):
    """The end of a text: all that is needed to continue it."""

    state: ModelState
    """after the last character, batch size 1"""
    logits: np.ndarray
    """of the next character, float32 (V,)"""
    drawn: int = 0
    """random numbers used of the sample's stream"""


def _device(model: Engine) -> torch.device:
    return model.init_state(1)[0][0].device


@torch.inference_mode()
def read(model: Engine, ids: np.ndarray, position: Position | None = None, scores: list | None = None) -> Position:
    """Read ids (n,), n >= 1, from the start or after another text. The memory needed does not grow with n.

    If `scores` is given, log-probabilities are appended to it, see `score`.
    """
    for chunk in torch.from_numpy(ids.astype(np.int64)).to(_device(model)).split(PREFILL):
        logits, state = model.forward(chunk[None], position.state if position else None)
        if scores is not None:
            before, targets = logits[0, :-1].float(), chunk[1:]
            if position:
                before, targets = torch.cat([torch.from_numpy(position.logits).to(before)[None], before]), chunk
            scores.append(before.log_softmax(-1).gather(1, targets[:, None])[:, 0].cpu().double().numpy())
        position = Position(state, logits[0, -1].float().cpu().numpy(), position.drawn if position else 0)
    assert position is not None
    return position


def score(model: Engine, ids: np.ndarray, position: Position | None = None) -> tuple[np.ndarray, Position]:
    """Natural log-probability of each of ids (n,), n >= 1, given those before it, and the position after the last.

    After a position there are n of them, float64; from the start n - 1, as nothing predicts the first id.
    """
    scores: list[np.ndarray] = []
    position = read(model, ids, position, scores)
    return np.concatenate(scores), position


class Decoder:
    """Continues N texts at once. Time and memory per character do not grow with the length of the texts.

    The last id of the vocabulary, the unknown, is never chosen.

    Args:
        model: predicts the next id.
        positions: the end of each text; `[position] * N` makes N continuations of one.
        seed: of the streams of random numbers. Row i uses the stream of sample `first + i`, from `position.drawn` on.
        first: number of the first sample. The text of sample i depends neither on `first` nor on N.
    """

    def __init__(self, model: Engine, positions: Sequence[Position], seed: int = 0, first: int = 0) -> None:
        self.model, self.device = model, _device(model)
        self._drawn = [position.drawn for position in positions]
        self._streams = RandomStreams(seed, range(first, first + len(positions)), self._drawn)
        self.logits = np.stack([position.logits for position in positions])  # (N, V)
        plain = isinstance(model, LanguageModel)
        self._size = ROWS.get(self.device.type, ROWS_ELSEWHERE) if plain else len(positions)
        self._first = first % self._size if plain else 0  # sample i has the same place in its group for every N
        index = np.arange(-(-(self._first + len(positions)) // self._size) * self._size) - self._first
        padded = [positions[i] for i in index.clip(0, len(positions) - 1)]
        self._groups = [_join([p.state for p in padded[i : i + self._size]]) for i in range(0, len(padded), self._size)]
        self._ids = np.zeros(len(padded), dtype=np.int64)
        self._inputs = torch.from_numpy(self._ids).split(self._size)  # the same memory

    def choose(self, options: SamplingOptions) -> np.ndarray:
        """The next id of each text (N,). Temperature 0 draws no random numbers."""
        uniform = self._streams.draw()[0] if options.temperature else np.empty(0)
        return choose(self.logits[:, :-1], uniform, options)

    @torch.inference_mode()
    def step(self, ids: np.ndarray) -> None:
        """Read the next id of each text (N,)."""
        rows = slice(self._first, self._first + len(ids))
        self._ids[rows] = ids
        parts = []
        for i, group in enumerate(self._inputs):
            logits, self._groups[i] = self.model.step(group.to(self.device), self._groups[i])
            parts.append(logits)
        logits = torch.cat(parts) if len(parts) > 1 else parts[0]
        self.logits = logits.float().cpu().numpy()[rows]

    @torch.inference_mode()
    def write(self, options: SamplingOptions, most: int = 1) -> np.ndarray:
        """Choose and read the next ids of each text (n, N), n from 1 to `most`. The ids do not depend on `most`.

        A packed model without filters does all of them in one native call; otherwise n is 1.
        """
        temperature = options.temperature
        if not isinstance(self.model, Packed) or options != SamplingOptions(temperature):
            ids = self.choose(options)
            self.step(ids)
            return ids[None]
        uniform = self._streams.draw(most) if temperature else np.zeros((most, len(self.logits)))
        self._burst = torch.from_numpy(self.logits), self._groups[0], torch.from_numpy(uniform), temperature
        chosen, logits, self._groups[0] = self.model.write(*self._burst)
        self.logits = logits.numpy()
        return chosen.numpy()

    @torch.inference_mode()
    def position(self, row: int, back: int = 0) -> Position:
        """A copy of where a text ends, or ended before the last `back` of the ids that `write` has just returned."""
        drawn = self._drawn[row] + self._streams.count
        if back == 0:
            group, place = divmod(self._first + row, self._size)
            return Position(_row(self._groups[group], place), self.logits[row].copy(), drawn)
        # A recurrent state cannot be undone, so the row is decoded again from the start of the last native call.
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
