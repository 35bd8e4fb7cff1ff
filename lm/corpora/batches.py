"""Batches: which characters a training step reads, and the pieces in which validation reads its split. Plain numpy.

Row i of a step's batch is a pure function of (seed, step, i): training resumes at any step without the state of a data
loader, and each device takes its slice of the rows.
"""

from collections.abc import Sequence

import numpy as np

Piece = tuple[np.ndarray, np.ndarray]
"""Inputs and targets, both (B, T) int64; in a text, each target is the character after its input."""


def random_windows(ids: np.ndarray, context: int, seed: int, step: int, rows: range) -> Piece:
    """Windows at uniformly random positions of ids (n,), for these rows of the step's batch."""
    last = len(ids) - context  # the number of windows with a target for every input
    starts = [
        int(np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, step, row])).integers(last)) for row in rows
    ]
    return _cut(ids, starts, context)


def streams(ids: np.ndarray, context: int, seed: int, step: int, rows: range, batch_size: int) -> tuple[Piece, bool]:
    """Consecutive pieces: row i reads the i-th of `batch_size` equal parts of ids (n,) from its start to its end.

    Each pass starts at a random offset, so that the pieces are cut at other places. A part must be longer than the
    context. Returns the batch, and whether it is the first of a pass: the carried state must then be dropped.
    """
    length = len(ids) // batch_size
    pieces = max(1, (length - context) // context)  # in one pass, at any offset
    number, piece = divmod(step, pieces)
    random = np.random.Generator(np.random.Philox(key=seed, counter=[0, 1, number, 0]))
    offset = int(random.integers(length - pieces * context))
    starts = [row * length + offset + piece * context for row in rows]
    return _cut(ids, starts, context), piece == 0


class Windows(Sequence[Piece]):
    """A text cut into consecutive windows, which score each character but the first exactly once.

    An item holds several windows, of about `characters` in all; the last item may be one shorter window. Items are made
    when they are asked for, so that a memory-mapped text stays on the disk.

    Args:
        ids: the text (n,).
        context: length of a window.
        characters: approximate number of characters in an item.
    """

    def __init__(self, ids: np.ndarray, context: int, characters: int = 16_384) -> None:
        self.ids, self.context = ids, context
        self.rows = max(1, characters // context)
        self.whole, self.rest = divmod(max(0, len(ids) - 1), context)

    def __len__(self) -> int:
        return -(-self.whole // self.rows) + (self.rest > 0)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if not 0 <= index < len(self):
            raise IndexError(index)
        windows = range(index * self.rows, min((index + 1) * self.rows, self.whole))
        if not windows:
            return _cut(self.ids, [self.whole * self.context], self.rest)
        return _cut(self.ids, [window * self.context for window in windows], self.context)


def stream(ids: np.ndarray, characters: int = 4096) -> Windows:
    """The same characters as one sequence, in consecutive pieces (1, characters), the last perhaps shorter."""
    return Windows(ids, characters, characters)


def _cut(ids: np.ndarray, starts: list[int], length: int) -> Piece:
    rows = np.stack([ids[start : start + length + 1] for start in starts]).astype(np.int64)
    return rows[:, :-1], rows[:, 1:]
