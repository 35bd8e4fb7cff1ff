"""Properties of the filters that hold for every input, looked for by hypothesis."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lm.sampling.filters import Options, choose, min_p, top_k, top_p

rows = st.lists(st.floats(-80, 80), min_size=1, max_size=24).map(lambda values: np.array([values]))
shares = st.floats(0, 1, exclude_min=True)


@given(rows, st.integers(0, 30))
def test_top_k_keeps_those_with_fewer_than_k_above_them(logits, k):
    kept = top_k(logits, k)[0]
    for value, left in zip(logits[0], kept, strict=True):
        assert np.isfinite(left) == (k == 0 or (logits[0] > value).sum() < k)
    assert np.isfinite(kept).any() and all(a == b for a, b in zip(logits[0], kept, strict=True) if np.isfinite(b))


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


@given(rows, st.floats(0, 1, exclude_max=True), st.floats(0, 1e3), st.integers(0, 30), shares, st.floats(0, 1))
def test_what_is_chosen_is_an_id_that_every_filter_keeps(logits, uniform, temperature, k, p, minimum):
    (chosen,) = choose(logits, np.array([uniform]), Options(temperature, k, p, minimum))
    assert 0 <= chosen < logits.shape[1]
    if temperature == 0 or k == 1:
        assert logits[0, chosen] == logits[0].max() or temperature > 0
    if temperature > 1e-3:
        scaled = (logits - logits.max()) / temperature
        assert np.isfinite(min_p(top_p(top_k(scaled, k), p), minimum)[0, chosen])
