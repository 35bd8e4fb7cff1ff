"""Text from a model: prefill in parallel by `forward`, then decode one character at a time by `step`.

    read     ids -> a `Position`: all that the model remembers of a text, as a value to keep, copy, save, or go on from
    Decoder  goes on from N positions at once
    write    texts, log-probabilities and stop strings of a Decoder's N samples
    generate the characters of one sample: what most programs need

The filters and `choose` are pure functions of logits (N, V) in numpy, where one row takes microseconds.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from lm.model import LanguageModel, ModelState
from lm.packed import Packed
from lm.tokenizer import CharTokenizer

PREFILL = 4096
"""Characters of the prompt that one forward pass reads: bounds the memory, whatever the prompt's length."""
ROWS = {"cpu": 4}
"""Rows in each step of a plain model, by device. Its matrix products round differently at every batch size, so that a
sample's bits would depend on the number of samples; in groups of one size, padded, they do not. On a CPU 4 rows take
1.3 times as long as one."""
ROWS_ELSEWHERE = 64
BLOCK = 256
"""Random numbers of each stream that are drawn at a time."""
BURST, SOON = 256, 0.01
"""Characters that one native call writes: from 1, twice as many each time, at most so many, and no more once a call
takes this many seconds. A reader sees text at once and all the time, and Ctrl-C need not wait."""


class Engine(Protocol):
    """What can be sampled from: a `LanguageModel` in eval mode, or a `lm.packed.Packed`."""

    def init_state(self, batch: int) -> ModelState: ...
    def forward(self, ids: Tensor, state: ModelState | None = None) -> tuple[Tensor, ModelState]: ...
    def step(self, ids: Tensor, state: ModelState) -> tuple[Tensor, ModelState]: ...


def top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Keep the k largest logits of each row (and what equals the smallest of them); 0 keeps all. Others become -inf."""
    if not 0 < k < logits.shape[-1]:
        return logits
    smallest = np.partition(logits, -k, axis=-1)[..., -k, None]
    return np.where(logits < smallest, -np.inf, logits)


def top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Keep the fewest most probable ids that together have probability p (nucleus sampling, arXiv 1904.09751)."""
    if p >= 1:
        return logits
    index = np.argsort(-logits, axis=-1, kind="stable")
    ordered = np.take_along_axis(logits, index, -1)
    weight = np.exp(ordered - ordered[..., :1])
    together = weight.cumsum(axis=-1)
    excluded = np.empty(logits.shape, dtype=bool)
    # `together - weight` is what the more probable ones have.
    np.put_along_axis(excluded, index, together - weight >= p * together[..., -1:], -1)
    return np.where(excluded, -np.inf, logits)


def min_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Keep ids at least p times as probable as the most probable one (arXiv 2407.01082); 0 keeps all."""
    if p <= 0:
        return logits
    return np.where(logits < logits.max(axis=-1, keepdims=True) + math.log(p), -np.inf, logits)


@dataclass
class Options:
    """How a character is chosen: temperature, then top-k, then top-p, then min-p. By default these three keep all."""

    temperature: float = 1.0
    """0 takes the most probable"""
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def choose(logits: np.ndarray, uniform: np.ndarray, options: Options) -> np.ndarray:
    """One id per row: logits (N, V) and numbers in [0, 1), uniform (N,) -> ids (N,).

    The id is the first whose cumulative probability exceeds the row's number: each row is chosen by itself.
    """
    if options.temperature == 0:
        return logits.argmax(axis=-1)
    scaled = logits.astype(np.float64)
    scaled -= scaled.max(axis=-1, keepdims=True)  # before the division: a tiny temperature may overflow
    with np.errstate(over="ignore"):
        scaled /= options.temperature
    kept = min_p(top_p(top_k(scaled, options.top_k), options.top_p), options.min_p)
    cumulative = np.exp(kept).cumsum(axis=-1)
    # Scaled, so that rounding cannot go past the end.
    return (cumulative <= (uniform * cumulative[:, -1])[:, None]).sum(axis=-1)


def log_probability(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Natural logarithms of what logits (N, V) give ids (N,): unfiltered, at temperature 1."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits[np.arange(len(ids)), ids] - np.log(np.exp(logits).sum(axis=-1))


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


class Piece(NamedTuple):
    """Some more of a sample's text; empty where that may still become a stop string."""

    sample: int
    text: str
    log_probabilities: list[float]
    """of the characters of `text`, if they were asked for"""
    finish: str = ""
    """why it ends here: length, stop or interrupted; empty where it goes on"""
    position: Position | None = None
    """where it ends, what was held back and the stop string included"""


def write(
    decoder: Decoder,
    tokenizer: CharTokenizer,
    chars: int | None,
    options: Options,
    stops: Sequence[str] = (),
    log_probabilities: bool = False,
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[list[Piece]]:
    """Write all of a decoder's texts; yields, a few characters at a time, a piece of each that has not ended.

    Args:
        chars: how many characters of each to write, at most; None for no end.
        stops: a text ends before any of these.
        interrupted: asked before each piece whether to end here.
    """
    held = {row: ("", list[float]()) for row in range(len(decoder.logits))}
    written, burst = 0, 1
    while held and written != chars:
        if interrupted():
            yield [Piece(row, *rest, "interrupted", decoder.position(row)) for row, rest in held.items()]
            return
        before, start = decoder.logits, perf_counter()
        ids = decoder.write(options, burst if chars is None else min(burst, chars - written))
        written += len(ids)
        if not log_probabilities and perf_counter() - start < SOON:
            burst = min(2 * burst, BURST)
        logs = [[x] for x in log_probability(before, ids[0]).tolist()] if log_probabilities else [[]] * ids.shape[1]
        pieces = []
        for row, (text, text_logs) in list(held.items()):
            text, text_logs = text + tokenizer.decode(ids[:, row]), text_logs + logs[row]
            ready, end = passable(text, stops) if stops else (len(text), 0)
            if end:
                finish, position = "stop", decoder.position(row, len(text) - end)
            elif written == chars:
                ready, finish, position = len(text), "length", decoder.position(row)
            else:
                pieces.append(Piece(row, text[:ready], text_logs[:ready]))
                held[row] = text[ready:], text_logs[ready:]
                continue
            pieces.append(Piece(row, text[:ready], text_logs[:ready], finish, position))
            del held[row]
        yield pieces


def passable(text: str, stops: Sequence[str]) -> tuple[int, int]:
    """How many characters of a text can be passed on, and where the stop string that follows them ends; 0 for none.

    The others are the stop string that is complete first, with what comes after it, or may become one.
    """
    ends = [place + len(stop) for stop in stops if (place := text.find(stop)) >= 0]
    if ends:
        end = min(ends)
        return min(place for stop in stops if (place := text.find(stop, 0, end)) >= 0), end
    begun = (n for stop in stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n]))
    return len(text) - max(begun, default=0), 0


def start_ids(tokenizer: CharTokenizer, prompt: str) -> np.ndarray:
    """Ids of a prompt. An empty one stands for the start of a line."""
    return tokenizer.encode(prompt or ("\n" if "\n" in tokenizer.characters else tokenizer.characters[0]))


def generate(
    model: Engine,
    tokenizer: CharTokenizer,
    prompt: str = "",
    chars: int | None = 1000,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    sample: int = 0,
    stop: str | Sequence[str] | None = None,
) -> Iterator[str]:
    """The continuation of a prompt, character by character as it is written.

    Args:
        model: in eval mode, as `lm.load` returns it, or packed by `lm.packed.pack`, which is faster.
        prompt: characters of the vocabulary; others are read as the unknown.
        chars: how many characters to write at most; None for no end.
        temperature: 0 for the most probable character always.
        top_k: choose among the k most probable; 0 for all.
        top_p: choose among the fewest most probable that have this probability together.
        min_p: choose among those at least this times as probable as the most probable.
        seed, sample: choose the stream of randomness: the text is a function of both.
        stop: end before this text, or before any of several.

    >>> model, tokenizer = lm.load("runs/first")
    >>> for char in generate(model, tokenizer, "ROMEO:", 200):
    ...     print(char, end="", flush=True)
    """
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    position = read(model, start_ids(tokenizer, prompt))
    options = Options(temperature, top_k, top_p, min_p)
    for (piece,) in write(Decoder(model, [position], seed, first=sample), tokenizer, chars, options, stops):
        yield from piece.text
