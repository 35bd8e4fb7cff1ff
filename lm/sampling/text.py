"""Text from a decoder: samples, log-probabilities, stop strings; `generate` is all that most programs need."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

import numpy as np

from lm.corpora.tokenizer import CharTokenizer, shown
from lm.sampling.decoder import Decoder, Engine, Position, read
from lm.sampling.filters import SamplingOptions, log_probability

BURST, BURST_SECONDS = 256, 0.01
"""Characters that one native call writes: 1 at first, then twice as many each time until there are this many or a call
takes this long. So text appears at once and steadily, and Ctrl-C acts soon."""


class Piece(NamedTuple):
    """The next part of a sample's text; empty where that may still become a stop string."""

    sample: int
    text: str
    log_probabilities: list[float]
    """of the characters of `text`, if they were asked for"""
    finish: str
    """why the sample ends here: length, stop or interrupted; empty where it continues"""
    position: Position | None
    """where the sample ends, after the stop string and any text that was held back for one"""


@dataclass
class Unsent:
    """What a sample has written and not passed on yet."""

    tokenizer: CharTokenizer
    ids: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """of a last character that is not whole yet"""
    id_logs: list[float] = field(default_factory=list)
    """log-probabilities of these ids, if they were asked for"""
    text: str = ""
    """whole characters; bytes that are not UTF-8 as `lm.corpora.tokenizer` has them"""
    logs: list[float] = field(default_factory=list)
    """log-probability of each of these characters"""
    length: int = 0
    """characters of the sample so far, whole ones"""

    def add(self, ids: np.ndarray, logs: list[float]) -> None:
        """Add the next ids (n,), and their log-probabilities or nothing."""
        ids = np.append(self.ids, ids)
        text, used = self.tokenizer.decode_begun(ids)
        self.ids, self.text, self.length = ids[used:], self.text + text, self.length + len(text)
        self.id_logs += logs
        for character in text if logs else "":
            size = len(self.tokenizer.encode(character))
            self.logs.append(sum(self.id_logs[:size]))
            del self.id_logs[:size]

    def take(self, row: int, count: int, finish: str, position: Position | None) -> Piece:
        """Pass on the first `count` characters."""
        piece = Piece(row, shown(self.text[:count]), self.logs[:count], finish, position)
        self.text, self.logs = self.text[count:], self.logs[count:]
        return piece


def write(
    decoder: Decoder,
    tokenizer: CharTokenizer,
    chars: int | None,
    options: SamplingOptions,
    stops: Sequence[str] = (),
    log_probabilities: bool = False,
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[list[Piece]]:
    """Continue all texts of a decoder. Yields, a few characters at a time, a piece of each sample that has not ended.

    A sample ends with a whole character.

    Args:
        chars: characters to write of each sample; None for no end. Up to 3 more where bytes are not UTF-8, as one byte
            may show that those before it are not.
        stops: a sample ends before the first of these strings.
        interrupted: called before each yield; true ends all samples.
    """
    held = {row: Unsent(tokenizer) for row in range(len(decoder.logits))}
    burst = 1
    while held and chars != 0:
        if interrupted():
            burst = 1
            if whole := {row: unsent for row, unsent in held.items() if not len(unsent.ids)}:
                held = {row: unsent for row, unsent in held.items() if row not in whole}
                yield [x.take(row, len(x.text), "interrupted", decoder.position(row)) for row, x in whole.items()]
                continue
        before, start = decoder.logits, perf_counter()
        left = math.inf if chars is None else chars - max(unsent.length for unsent in held.values())
        ids = decoder.write(options, max(1, int(min(burst, left - 3))))  # at most 3 more characters than ids
        if not log_probabilities and perf_counter() - start < BURST_SECONDS:
            burst = min(2 * burst, BURST)
        logs = [[x] for x in log_probability(before, ids[0]).tolist()] if log_probabilities else [[]] * ids.shape[1]
        pieces = []
        for row, unsent in list(held.items()):
            unsent.add(ids[:, row], logs[row])
            ready, finish, back = _ready(unsent, chars, stops)
            if finish:
                del held[row]
            pieces.append(unsent.take(row, ready, finish, decoder.position(row, back) if finish else None))
        yield pieces


def _ready(unsent: Unsent, chars: int | None, stops: Sequence[str]) -> tuple[int, str, int]:
    """How many characters of a sample can be passed on, why it ends with them, and how many ids are after its end."""
    ready, end = find_stop(unsent.text, stops) if stops else (len(unsent.text), 0)
    if end:
        return ready, "stop", len(unsent.tokenizer.encode(unsent.text[end:])) + len(unsent.ids)
    if chars is not None and unsent.length >= chars and not len(unsent.ids):
        return len(unsent.text), "length", 0
    return ready, "", 0


def find_stop(text: str, stops: Sequence[str]) -> tuple[int, int]:
    """Search for stop strings in the part of a text that was not passed on yet.

    Returns:
        ready: how many characters can be passed on. The rest is, or may become, a stop string.
        end: where the stop string that is complete first ends; 0 if there is none.
    """
    ends = [place + len(stop) for stop in stops if (place := text.find(stop)) >= 0]
    if ends:
        end = min(ends)
        return min(place for stop in stops if (place := text.find(stop, 0, end)) >= 0), end
    begun = (n for stop in stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n]))
    return len(text) - max(begun, default=0), 0


def start_ids(tokenizer: CharTokenizer, prompt: str) -> np.ndarray:
    """Ids of a prompt. An empty prompt stands for the start of a line."""
    return tokenizer.encode(prompt or (tokenizer.characters[0] if tokenizer.missing("\n") else "\n"))


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
    """Continue a prompt. Yields the characters as they are written.

    Args:
        model: in eval mode, as `lm.load` returns it, or packed by `lm.sampling.packed.pack`, which is faster.
        prompt: characters outside the vocabulary are read as the unknown.
        chars: characters to write; None for no end.
        temperature: 0 always takes the most probable character.
        top_k: choose among the k most probable characters; 0 for all.
        top_p: choose among the fewest most probable characters whose probabilities sum to this.
        min_p: choose among the characters that are at least this times as probable as the most probable one.
        seed, sample: the text is a function of both.
        stop: end before this text, or before the first of several.

    >>> model, tokenizer = lm.load("runs/first")
    >>> for char in generate(model, tokenizer, "ROMEO:", 200):
    ...     print(char, end="", flush=True)
    """
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    position = read(model, start_ids(tokenizer, prompt))
    options = SamplingOptions(temperature, top_k, top_p, min_p)
    for (piece,) in write(Decoder(model, [position], seed, first=sample), tokenizer, chars, options, stops):
        yield from piece.text
