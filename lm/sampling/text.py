"""Text from a decoder: samples, log-probabilities and stop strings."""

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np

from lm.corpora.tokenizer import CharTokenizer
from lm.sampling.decoder import Decoder, Engine, Position, read
from lm.sampling.filters import Options, log_probability

BURST, SOON = 256, 0.01
"""Characters that one native call writes: from 1, twice as many each time, at most so many, and no more once a call
takes this many seconds. A reader sees text at once and all the time, and Ctrl-C need not wait."""


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
