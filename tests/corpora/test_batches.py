"""Batches are pure functions of (seed, step, row); validation scores each character once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.corpora.batches import random_windows, stream, streams, windows

IDS = np.arange(1000, dtype=np.uint16)


@given(st.integers(0, 2**32), st.integers(0, 2**32), st.integers(1, 998))
def test_a_row_depends_on_seed_step_and_row_alone(seed, step, context):
    x, y = random_windows(IDS, context, seed, step, range(6))
    part, _ = random_windows(IDS, context, seed, step, range(2, 4))
    assert np.array_equal(x[2:4], part)
    assert np.array_equal(y, x + 1) and x.shape == (6, context) and y.max() <= 999


def test_windows_cover_every_position_evenly():
    starts = [random_windows(IDS, 990, 0, step, range(1))[0][0, 0] for step in range(2000)]
    counts = np.bincount(starts, minlength=10)
    assert len(counts) == 10 and counts.min() > 140


def test_steps_seeds_and_rows_differ():
    batches = [random_windows(IDS, 5, seed, step, range(2))[0] for seed, step in ((0, 0), (0, 1), (1, 0))]
    rows = {tuple(row) for batch in batches for row in batch}
    assert len(rows) == 6


@given(st.integers(2, 300), st.integers(1, 64), st.integers(1, 200))
def test_validation_scores_every_character_but_the_first_once(length, context, characters):
    ids = np.arange(length)
    for pieces in (windows(ids, context, characters), stream(ids, characters)):
        pieces = list(pieces)
        assert np.array_equal(np.concatenate([y.ravel() for _, y in pieces]), ids[1:])
        assert all(np.array_equal(y, x + 1) for x, y in pieces)


@pytest.mark.parametrize(
    ("length", "batch_size", "context"), [(1000, 4, 10), (1000, 1, 999), (103, 10, 10), (1000, 7, 50)]
)
def test_streams_continue_from_batch_to_batch(length, batch_size, context):
    ids = np.arange(length)
    previous, passes = None, 0
    for step in range(120):
        (x, y), fresh = streams(ids, context, 0, step, range(batch_size), batch_size)
        assert np.array_equal(y, x + 1) and x.shape == (batch_size, context)
        if not fresh:
            assert np.array_equal(x[:, 0], previous[:, -1])
        passes += fresh
        previous = y
    assert passes >= 1 and (passes > 1 or length // batch_size > 120 * context)


def test_streams_rows_are_a_slice():
    (x, _), _ = streams(IDS, 10, 3, 5, range(4), 4)
    (part, _), _ = streams(IDS, 10, 3, 5, range(1, 3), 4)
    assert np.array_equal(x[1:3], part)
