"""The filters and the choice of an id, against values worked by hand and against their definitions in plain Python."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lm.sampling.filters import SamplingOptions, choose, log_probability, min_p, top_k, top_p
from tests.sampling.helpers import choose_slowly

P = [0.5, 0.25, 0.15, 0.1]
LOGITS = np.log([P])
rows = st.lists(st.floats(-80, 80), min_size=1, max_size=24).map(lambda values: np.array([values]))
shares = st.floats(0, 1, exclude_min=True)


def kept(filtered: np.ndarray) -> list[int]:
    """The ids that a filter keeps of one row; it must leave their logits alone and make -inf of the others."""
    assert np.array_equal(filtered[0, np.isfinite(filtered[0])], LOGITS[0, np.isfinite(filtered[0])])
    assert np.isneginf(filtered[0, ~np.isfinite(filtered[0])]).all()
    return np.flatnonzero(np.isfinite(filtered[0])).tolist()


def test_top_k_keeps_the_k_largest():
    assert [kept(top_k(LOGITS, k)) for k in (1, 2, 3)] == [[0], [0, 1], [0, 1, 2]]
    for k in (0, 4, 5, 99):
        assert kept(top_k(LOGITS, k)) == [0, 1, 2, 3]
    many = np.random.default_rng(0).permuted(np.tile(np.arange(1000.0), (3, 1)), axis=1)
    for k in (1, 17, 500, 999):
        assert np.array_equal(np.isfinite(top_k(many, k)), many >= 1000 - k)
    assert np.isfinite(top_k(np.array([[1.0, 3, 2, 3, 2]]), 3))[0].tolist() == [False, True, True, True, True]  # a tie
    assert top_k(np.array([[1.0, 2, 3], [3, 2, 1]]), 1).tolist() == [
        [-math.inf, -math.inf, 3],
        [3, -math.inf, -math.inf],
    ]


def test_top_p_keeps_the_fewest_that_reach_p():
    assert [kept(top_p(LOGITS, p)) for p in (0.4, 0.51, 0.74, 0.76, 0.91)] == [
        [0],
        [0, 1],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3],
    ]
    assert kept(top_p(LOGITS, 1.0)) == [0, 1, 2, 3]
    shuffled = top_p(LOGITS[:, [3, 1, 0, 2]], 0.6)
    assert np.isfinite(shuffled)[0].tolist() == [False, True, True, False]
    assert np.isfinite(top_p(np.array([[999.0, 1000]]), 0.7)).tolist() == [[False, True]]  # without overflow
    assert np.isfinite(top_p(np.array([[0.0, -50]]), 1.0)).all()  # however improbable
    halves = np.array(
        [[0.0, 0, 0, 0], [0, 0, -50, -60]]
    )  # p is reached exactly after two of four, and after one of two
    assert np.isfinite(top_p(halves, 0.5)).tolist() == [[True, True, False, False], [True, False, False, False]]


def test_min_p_keeps_what_is_probable_enough_beside_the_first():
    assert [kept(min_p(LOGITS, p)) for p in (0.0, 0.19, 0.21, 0.29, 0.31, 0.51, 1.0)] == [
        *([0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2], [0, 1, 2], [0, 1], [0], [0])
    ]
    both = np.isfinite(min_p(np.array([[0.0, -1], [-1, 0]]), 0.5))
    assert both.tolist() == [[True, False], [False, True]]


@given(rows, st.integers(0, 30))
def test_top_k_keeps_those_with_fewer_than_k_above_them(logits, k):
    kept = top_k(logits, k)[0]
    for value, left in zip(logits[0], kept, strict=True):
        assert left == value if k == 0 or (logits[0] > value).sum() < k else left == -math.inf


@given(rows, shares)
def test_top_p_keeps_the_fewest_that_have_p_together(logits, p):
    kept = np.isfinite(top_p(logits, p)[0])
    probability = np.exp(logits[0] - logits[0].max())
    probability /= probability.sum()
    assert kept.any() and probability[kept].sum() >= p - 1e-9
    assert p == 1 or probability[kept].sum() - probability[kept].min() <= p + 1e-9
    assert kept.all() or probability[kept].min() >= probability[~kept].max()


@given(rows, st.floats(0, 1))
def test_min_p_keeps_those_at_least_p_times_as_probable_as_the_first(logits, p):
    kept = np.isfinite(min_p(logits, p)[0])
    for value, left in zip(logits[0] - logits[0].max(), kept, strict=True):
        if p == 0 or abs(value - math.log(p)) > 1e-9:
            assert left == (p == 0 or value >= math.log(p))
    assert kept[logits[0].argmax()]


@pytest.mark.parametrize(
    ("options", "uniform", "ids"),
    [
        ({}, [0.0, 0.49, 0.51, 0.74, 0.76, 0.89, 0.91, 0.999], [0, 0, 1, 1, 2, 2, 3, 3]),
        # 0.25, 0.0625, 0.0225, 0.01 of 0.345: limits 0.7246, 0.9058, 0.9710
        ({"temperature": 0.5}, [0.72, 0.73, 0.90, 0.91, 0.970, 0.972], [0, 1, 1, 2, 2, 3]),
        # square roots 0.7071, 0.5, 0.3873, 0.3162 of 1.9106: limits 0.3701, 0.6318, 0.8345
        ({"temperature": 2.0}, [0.36, 0.38, 0.63, 0.64, 0.83, 0.84], [0, 1, 1, 2, 2, 3]),
        ({"top_k": 2}, [0.66, 0.67, 0.999], [0, 1, 1]),
        ({"top_p": 0.6}, [0.66, 0.67, 0.999], [0, 1, 1]),
        ({"min_p": 0.25}, [0.55, 0.56, 0.83, 0.84, 0.999], [0, 1, 1, 2, 2]),
        # The temperature comes first: the first id has 0.7246 then, which is enough.
        ({"temperature": 0.5, "top_p": 0.7}, [0.0, 0.999], [0, 0]),
        # Top-p sees what top-k left: the first id has two thirds of it.
        ({"top_k": 2, "top_p": 0.6}, [0.0, 0.999], [0, 0]),
        ({"temperature": 0}, [0.0, 0.999], [0, 0]),
    ],
    ids=str,
)
def test_choices_worked_by_hand(options, uniform, ids):
    logits = LOGITS.repeat(len(uniform), axis=0).astype(np.float32)
    before = logits.copy()
    assert choose(logits, np.array(uniform), SamplingOptions(**options)).tolist() == ids
    assert np.array_equal(logits, before)


def test_the_first_id_whose_cumulative_probability_exceeds_the_number():
    equal = np.zeros((4, 4))
    assert choose(equal, np.array([0.25, 0.5, 0.75, np.nextafter(1, 0)]), SamplingOptions()).tolist() == [1, 2, 3, 3]
    impossible = np.array([[-np.inf, 0.0, -np.inf]])
    for uniform in (0.0, 0.5, np.nextafter(1, 0)):
        assert choose(impossible, np.array([uniform]), SamplingOptions()).tolist() == [1]


def test_rows_are_chosen_by_themselves():
    logits = np.log([P, P[::-1], [0.25] * 4])
    uniform = np.array([0.6, 0.6, 0.6])
    alone = [int(choose(logits[i : i + 1], uniform[i : i + 1], SamplingOptions())[0]) for i in range(3)]
    assert choose(logits, uniform, SamplingOptions()).tolist() == alone == [1, 3, 2]


def test_temperature_0_takes_the_first_of_the_largest_and_a_tiny_one_does_not_overflow():
    logits = np.array([[1.0, 7, 7, 2], [3, 2, 1, 0]])
    assert choose(logits, np.empty(0), SamplingOptions(temperature=0)).tolist() == [1, 0]
    spread = np.array([[-3e38, 3e38, 0.0]])
    assert choose(spread, np.array([0.999]), SamplingOptions(temperature=1e-320)).tolist() == [1]


@given(rows, st.floats(0, 1, exclude_max=True), st.floats(0.1, 10), st.integers(0, 30), shares, st.floats(0, 1))
def test_choices_are_those_of_the_definitions(logits, uniform, temperature, k, p, minimum):
    scaled = (logits[0] - logits[0].max()) / temperature
    # Not ties, which top-k keeps and the plain loop does not, nor what exp makes ties of.
    assume(np.diff(np.sort(scaled)).min(initial=1.0) > 1e-12)
    (chosen,) = choose(logits, np.array([uniform]), SamplingOptions(temperature, k, p, minimum))
    near = [
        choose_slowly(logits[0].tolist(), u, temperature, k, p, minimum)
        for u in (uniform - 1e-9, uniform, uniform + 1e-9)
    ]
    nudged = choose_slowly(logits[0].tolist(), uniform, temperature, k, p * (1 + 1e-9), minimum * (1 - 1e-9))
    assert chosen in (*near, nudged)


def test_log_probabilities():
    logits = np.log([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]).astype(np.float32) + np.float32(5)
    got = log_probability(logits, np.array([1, 2]))
    assert got.dtype == np.float64 and np.allclose(got, [math.log(0.25), math.log(0.7)], atol=1e-6)
    far = log_probability(np.array([[1000.0, 0.0]], dtype=np.float32), np.array([1]))
    assert far.tolist() == [-1000.0]  # no overflow


def test_defaults_keep_all():
    assert SamplingOptions() == SamplingOptions(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)


def test_rows_of_very_different_size_are_chosen_by_themselves():
    """Relative to the largest of all, every number of the second row would be zero."""
    logits = np.array([[5000.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert choose(logits, np.array([0.9, 0.9]), SamplingOptions()).tolist() == [0, 2]


def test_equal_logits_at_the_edge_of_top_p_are_taken_in_order_of_their_ids():
    """In arrays that are long enough for numpy to sort in another way."""
    kept = np.isfinite(top_p(np.zeros((1, 1000)), 0.25))[0]
    assert np.flatnonzero(kept).tolist() == list(range(250))
