"""Batches: which characters a step trains on, and in which pieces validation reads its split. Plain numpy.

Row i of the global batch of a step is a pure function of (seed, step, i): a run resumes at any step without any state
of a loader, and a device takes its slice of the rows.
"""

from collections.abc import Iterator

import numpy as np

Piece = tuple[np.ndarray, np.ndarray]
"""Inputs and targets, both (B, T) int64; in a text, each target is the character after its input."""


def random_windows(ids: np.ndarray, context: int, seed: int, step: int, rows: range) -> Piece:
    """Windows at uniformly random positions of ids (n,), for these rows of the step's batch."""
    last = len(ids) - context  # the number of windows with a target for every input
    starts = [
        int(np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, step, row])).integers(last)) for row in rows
    ]
    return _pieces(ids, starts, context)


def streams(ids: np.ndarray, context: int, seed: int, step: int, rows: range, batch_size: int) -> tuple[Piece, bool]:
    """Consecutive pieces: row i reads the i-th of `batch_size` equal parts of ids (n,) from its start to its end.

    Each pass begins a little further in, at random, so that the cuts fall elsewhere. Returns the batch and whether a
    pass begins with it, where a carried state must be dropped.
    """
    length = len(ids) // batch_size
    pieces = max(1, (length - context) // context)  # in one pass, wherever it begins
    number, piece = divmod(step, pieces)
    slack = length - pieces * context
    begin = int(np.random.Generator(np.random.Philox(key=seed, counter=[0, 1, number, 0])).integers(max(1, slack)))
    starts = [row * length + begin + piece * context for row in rows]
    return _pieces(ids, starts, context), piece == 0


def windows(ids: np.ndarray, context: int, characters: int = 16_384) -> Iterator[Piece]:
    """Non-overlapping windows that score every character of ids but the first exactly once.

    Several windows at a time, about so many characters; the last piece may be shorter than the context.
    """
    whole = (len(ids) - 1) // context
    at_once = max(1, characters // context)
    for first in range(0, whole, at_once):
        yield _pieces(ids, [i * context for i in range(first, min(first + at_once, whole))], context)
    if rest := (len(ids) - 1) % context:
        yield _pieces(ids, [whole * context], rest)


def stream(ids: np.ndarray, characters: int = 4096) -> Iterator[Piece]:
    """The same characters as one sequence, in consecutive pieces (1, characters), the last perhaps shorter."""
    for start in range(0, len(ids) - 1, characters):
        yield _pieces(ids, [start], min(characters, len(ids) - 1 - start))


def _pieces(ids: np.ndarray, starts: list[int], length: int) -> Piece:
    rows = np.stack([ids[start : start + length + 1] for start in starts]).astype(np.int64)
    return rows[:, :-1], rows[:, 1:]
