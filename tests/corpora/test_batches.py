"""Batches are pure functions of (seed, step, row); the pieces of validation score each character once."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.corpora.batches import Windows, permute, random_windows, shuffled_windows, spread, stream, streams

IDS = np.arange(1000, dtype=np.uint16)


def draw(seed: int, *counter: int, below: int) -> int:
    """A number in 0 ... below - 1, from the generator of this seed and counter."""
    return int(np.random.Generator(np.random.Philox(key=seed, counter=[0, *counter])).integers(below))


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(1, 999), st.integers(0, 50), st.integers(1, 8))
def test_a_row_depends_on_seed_step_and_row_alone(seed, step, context, first, count):
    x, y = random_windows(IDS, context, seed, step, range(first, first + count))
    assert x.shape == (count, context) and x.dtype == y.dtype == np.int64 and np.array_equal(y, x + 1)
    starts = [draw(seed, 0, step, row, below=1000 - context) for row in range(first, first + count)]
    assert x[:, 0].tolist() == starts


def test_windows_cover_every_position_evenly():
    starts = [random_windows(IDS, 990, 0, step, range(1))[0][0, 0] for step in range(2000)]
    counts = np.bincount(starts, minlength=10)
    assert len(counts) == 10 and counts.min() > 140


def test_steps_seeds_and_rows_differ():
    batches = [random_windows(IDS, 5, seed, step, range(2))[0] for seed, step in ((0, 0), (0, 1), (1, 0))]
    rows = {tuple(row) for batch in batches for row in batch}
    assert len(rows) == 6


@given(st.integers(11, 600), st.integers(1, 10), st.integers(1, 7), st.integers(0, 2**63 - 1))
def test_an_epoch_reads_every_window_once(length, context, batch_size, seed):
    """Whatever the batch size: an epoch may end within a batch. Its windows follow each other in the text."""
    count = max(1, (length - context) // context)
    rows: list[int] = []
    for step in range(-(-3 * count // batch_size)):
        x, y = shuffled_windows(np.arange(length), context, seed, step, range(batch_size), batch_size)
        assert x.shape == (batch_size, context) and np.array_equal(y, x + 1) and y.max() < length
        rows += x[:, 0].tolist()
    for epoch in range(3):
        starts = sorted(rows[epoch * count : (epoch + 1) * count])
        assert np.diff(starts).tolist() == [context] * (count - 1)
        assert 0 <= starts[0] < max(context, length - context)


def test_epochs_and_seeds_have_orders_and_offsets_of_their_own():
    def epoch(seed: int, number: int) -> list[int]:
        return shuffled_windows(IDS, 10, seed, number, range(99), 99)[0][:, 0].tolist()

    orders = [epoch(0, 0), epoch(0, 1), epoch(1, 0)]
    assert len({tuple(order) for order in orders}) == 3 and len({min(order) for order in orders}) > 1
    assert all(abs(np.corrcoef(order, range(99))[0, 1]) < 0.4 for order in orders)
    assert {min(epoch(seed, 0)) for seed in range(100)} == set(range(10))


def test_devices_share_a_step_of_shuffled_windows():
    whole = shuffled_windows(IDS, 10, 3, 5, range(8), 8)[0]
    halves = [shuffled_windows(IDS, 10, 3, 5, rows, 8)[0] for rows in (range(4), range(4, 8))]
    assert np.array_equal(whole, np.concatenate(halves))


def test_permutations_are_permutations_and_all_of_three_are_equally_likely():
    keys = np.random.default_rng(0).integers(2**64, size=(600, 8), dtype=np.uint64)
    for count in (1, 2, 3, 4, 5, 16, 17, 1000, 4097):
        assert sorted(permute(np.arange(count), count, keys[count % 600])) == list(range(count))
    found = [tuple(permute(np.arange(3), 3, key)) for key in keys]
    counts = Counter(found)
    assert len(counts) == 6 and min(counts.values()) > 70
    assert permute(np.array([7]), 2**40 + 1, keys[0]) != permute(np.array([7]), 2**40 + 1, keys[1])


@given(st.integers(0, 400), st.integers(1, 80), st.integers(1, 500))
def test_each_character_but_the_first_is_scored_once_from_the_one_before_it(length, context, characters):
    ids = np.arange(length, dtype=np.uint16)
    for pieces in (Windows(ids, context, characters), stream(ids, characters)):
        scored: list[int] = []
        for x, y in pieces:
            assert np.array_equal(y, x + 1) and x.dtype == y.dtype == np.int64
            scored += y.ravel().tolist()
        assert scored == list(range(1, length))
        assert len(pieces) == sum(1 for _ in pieces)


def test_windows_by_hand():
    """Ten characters in windows of three, two of them at a time: 9 targets, and none left over; then 8 with a rest."""
    x, y = Windows(np.arange(10), 3, characters=7)[0]
    assert x.tolist() == [[0, 1, 2], [3, 4, 5]] and y.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert [x.tolist() for x, _ in Windows(np.arange(10), 3, 7)] == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8]]]
    assert [x.tolist() for x, _ in Windows(np.arange(9), 3, 7)] == [[[0, 1, 2], [3, 4, 5]], [[6, 7]]]
    assert [x.tolist() for x, _ in stream(np.arange(9), 3)] == [[[0, 1, 2]], [[3, 4, 5]], [[6, 7]]]
    assert len(stream(np.arange(8194))) == 3 and Windows(np.arange(40_000), 1024)[0][0].shape == (16, 1024)
    assert Windows(np.arange(40_000), 5)[0][0].shape == (16_384 // 5, 5)
    assert len(Windows(np.arange(2), 3)) == 1 and len(Windows(np.arange(1), 3)) == len(Windows(np.arange(0), 3)) == 0


def test_pieces_are_made_when_they_are_asked_for(tmp_path):
    """So that validation does not copy a memory-mapped split, eight bytes a character, into the memory."""
    np.save(tmp_path / "ids.npy", np.zeros(10_000_000, np.uint16))
    ids = np.load(tmp_path / "ids.npy", mmap_mode="r")
    for pieces in (Windows(ids, 128), stream(ids)):
        assert isinstance(pieces.ids, np.memmap) and pieces[len(pieces) - 1][0].size <= 16_384
        with pytest.raises(IndexError):
            pieces[len(pieces)]


@pytest.mark.parametrize(
    ("length", "batch_size", "context"), [(1000, 4, 10), (1000, 1, 999), (113, 10, 10), (1000, 7, 50), (110, 10, 10)]
)
def test_streams_by_hand(length, batch_size, context):
    """Row i stays in the i-th part, each pass from an offset of its own, and goes on where it was."""
    part = length // batch_size
    pieces = max(1, part // context - 1)
    for step in range(3 * pieces):
        (x, y), fresh = streams(np.arange(length), context, 5, step, range(batch_size), batch_size)
        number, piece = divmod(step, pieces)
        offset = draw(5, 1, number, 0, below=part - pieces * context)
        assert x[:, 0].tolist() == [row * part + offset + piece * context for row in range(batch_size)]
        assert np.array_equal(y, x + 1) and x.shape == (batch_size, context) and fresh == (piece == 0)


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 500), st.integers(0, 60), st.integers(0, 99))
def test_streams_stay_in_their_part_and_go_on_where_they_were(batch, context, extra, step, seed):
    ids = np.arange(batch * (context + 1) + extra)
    (x, y), fresh = streams(ids, context, seed, step, range(batch), batch)
    assert x.shape == (batch, context) and np.array_equal(y, x + 1)
    part = len(ids) // batch
    assert (x[:, 0] // part).tolist() == (y[:, -1] // part).tolist() == list(range(batch))
    (after, _), begins = streams(ids, context, seed, step + 1, range(batch), batch)
    assert begins or np.array_equal(after[:, 0], y[:, -1])
    assert fresh or step > 0


def test_streams_rows_are_a_slice():
    (x, _), _ = streams(IDS, 10, 3, 5, range(4), 4)
    (part, _), _ = streams(IDS, 10, 3, 5, range(1, 3), 4)
    assert np.array_equal(x[1:3], part)


def test_stretches_are_spread_evenly_over_a_long_text():
    """From its first to its last character, in order, as many as are asked for and one more, which begins the first."""
    ids = np.arange(1000)
    found = spread(ids, 99, stretches=4)
    assert len(found) == 100 and found[0] == 0 and found[-1] == 999
    starts = [0, *(np.flatnonzero(np.diff(found) != 1) + 1)]
    assert starts == [0, 25, 50, 75] and found[starts].tolist() == [0, 325, 650, 975]
    assert np.array_equal(spread(ids, 999), ids) and len(spread(ids, 998, 16)) == 999
    assert spread(ids, 1, 16).tolist() == [0, 999]


def test_the_permutation_is_a_feistel_network_with_splitmix64():
    """Worked out with Python's whole numbers; the constants are those of Steele, Lea and Flood (2014)."""
    keys = np.arange(8, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)

    def mix(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    def place(number: int, count: int) -> int:
        bits = max(2, (count - 1).bit_length())
        high, low = bits - bits // 2, bits // 2
        while True:
            halves = [number >> low, number % 2**low]
            for i, key in enumerate(keys.tolist()):
                halves[i % 2] ^= mix((halves[1 - i % 2] + key) % 2**64) % 2 ** (low if i % 2 else high)
            number = halves[0] << low | halves[1]
            if number < count:
                return number

    for count in (1, 2, 3, 5, 100, 1000, 40_000):
        places = np.arange(min(count, 200))
        assert permute(places, count, keys).tolist() == [place(int(i), count) for i in places]
