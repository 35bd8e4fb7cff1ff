"""Batches: which characters a training step reads, and the pieces in which validation reads its split. Plain numpy.

Row i of a step's batch is a pure function of (seed, step, i): training resumes at any step without the state of a data
loader, and each device takes its slice of the rows.
"""

import functools
from collections.abc import Sequence

import numpy as np

Piece = tuple[np.ndarray, np.ndarray]
"""Inputs and targets, both (B, T) int64; in a text, each target is the character after its input."""
PLACES = 4096
"""Windows whose order is computed at a time: a few at each step would take longer."""


def shuffled_windows(ids: np.ndarray, context: int, seed: int, step: int, rows: range, batch_size: int) -> Piece:
    """Windows without replacement, for these rows of the step's batch: every epoch reads each window of ids (n,) once.

    An epoch cuts the text into consecutive windows, from a random offset, and reads them in random order.
    """
    count = pieces_in(len(ids), context)
    starts = []
    for row in rows:
        epoch, place = divmod(step * batch_size + row, count)
        starts.append(_starts(len(ids), context, seed, epoch, place // PLACES)[place % PLACES])
    return _cut(ids, starts, context)


@functools.lru_cache(maxsize=16)
def _starts(length: int, context: int, seed: int, epoch: int, block: int) -> np.ndarray:
    """Where the windows of an epoch start, in the order in which it reads them: the windows of one block of PLACES."""
    count = pieces_in(length, context)
    random = np.random.Generator(np.random.Philox(key=seed, counter=[0, 2, epoch, 0]))
    offset, keys = int(random.integers(length - count * context)), random.integers(2**64, size=8, dtype=np.uint64)
    places = np.arange(block * PLACES, min(count, (block + 1) * PLACES))
    return offset + permute(places, count, keys) * context


def permute(places: np.ndarray, count: int, keys: np.ndarray) -> np.ndarray:
    """Where a random permutation of 0 ... count - 1 has these places (n,); int64.

    A Feistel network with one round per key, an even number of them, on the bits that `count - 1` has. It permutes all
    numbers of so many bits, and is applied again to results that are too large. A shuffled array would need memory.
    """
    bits = max(2, (count - 1).bit_length())
    low, masks = np.uint64(bits // 2), [np.uint64(2 ** (bits - bits // 2) - 1), np.uint64(2 ** (bits // 2) - 1)]
    results = places.astype(np.uint64)
    todo = np.arange(len(places))
    while len(todo):
        halves = [results[todo] >> low, results[todo] & masks[1]]
        for i, key in enumerate(keys):
            halves[i % 2] = halves[i % 2] ^ (_mix(halves[1 - i % 2] + key) & masks[i % 2])
        results[todo] = halves[0] << low | halves[1]
        todo = np.flatnonzero(results >= np.uint64(count))
    return results.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea and Flood, 2014), a hash of 64-bit numbers."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


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
    pieces = pieces_in(length, context)
    number, piece = divmod(step, pieces)
    random = np.random.Generator(np.random.Philox(key=seed, counter=[0, 1, number, 0]))
    offset = int(random.integers(length - pieces * context))
    starts = [row * length + offset + piece * context for row in rows]
    return _cut(ids, starts, context), piece == 0


def pieces_in(length: int, context: int) -> int:
    """How many consecutive pieces a pass over so many characters reads, whatever its offset; at least one."""
    return max(1, (length - context) // context)


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


def spread(ids: np.ndarray, characters: int, stretches: int = 16) -> np.ndarray:
    """ids (n,), or evenly spread stretches of longer ones: a text of which so many characters follow another one."""
    if len(ids) <= characters + 1:
        return ids
    lengths = [len(part) for part in np.array_split(np.arange(characters + 1), min(stretches, characters + 1))]
    starts = [round(place) for place in np.linspace(0, len(ids) - max(lengths), len(lengths))]
    return np.concatenate([ids[start : start + length] for start, length in zip(starts, lengths, strict=True)])


def _cut(ids: np.ndarray, starts: Sequence[int], length: int) -> Piece:
    places = np.asarray(starts)[:, None] + np.arange(length + 1)
    rows = np.asarray(ids)[places].astype(np.int64)  # a memory-mapped array would make each access one of Python's
    return rows[:, :-1], rows[:, 1:]
