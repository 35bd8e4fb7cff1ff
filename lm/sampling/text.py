"""Text from a decoder: samples, log-probabilities, stop strings; `generate` is all that most programs need."""

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np

from lm.corpora.tokenizer import CharTokenizer
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

    Args:
        chars: characters to write of each sample; None for no end.
        stops: a sample ends before the first of these strings.
        interrupted: called before each yield; true ends all samples.
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
        if not log_probabilities and perf_counter() - start < BURST_SECONDS:
            burst = min(2 * burst, BURST)
        logs = [[x] for x in log_probability(before, ids[0]).tolist()] if log_probabilities else [[]] * ids.shape[1]
        pieces = []
        for row, (text, text_logs) in list(held.items()):
            text, text_logs = text + tokenizer.decode(ids[:, row]), text_logs + logs[row]
            ready, end = find_stop(text, stops) if stops else (len(text), 0)
            finish, position = "", None
            if end:
                finish, position = "stop", decoder.position(row, len(text) - end)
            elif written == chars:
                ready, finish, position = len(text), "length", decoder.position(row)
            pieces.append(Piece(row, text[:ready], text_logs[:ready], finish, position))
            held[row] = text[ready:], text_logs[ready:]
            if finish:
                del held[row]
        yield pieces


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
