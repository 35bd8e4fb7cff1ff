"""Figures of channels against plain formulas over the whole text."""

import numpy as np
import pytest

from lm.analysis.inspect import channels as module
from lm.analysis.inspect.channels import Channels, Extremes, measure, number
from lm.analysis.inspect.traces import Trace
from lm.files import UserError

N, F, HIDDEN = 1000, 3, [4, 3]
random = np.random.default_rng(0)
h = random.normal(100, 0.1, (N, 7)).astype(np.float32)  # a mean that is large beside the deviation
z = random.uniform(0.01, 0.99, (N, 7)).astype(np.float32)
features = random.normal(size=(F, N)).astype(np.float32)
h[:, 2] += 0.3 * features[1]
h[:, 5] = 0.25  # constant
features[2] = 1  # constant


def found(size: int) -> Channels:
    """The figures, from pieces of a size."""
    pieces = (Trace(np.empty(0), z[i : i + size], h[i : i + size]) for i in range(0, N, size))
    return measure(pieces, features, HIDDEN)


@pytest.mark.parametrize("size", [1, 300, N])
def test_figures(size):
    channels = found(size)
    np.testing.assert_allclose(channels.time, -1 / np.log(1 - z.astype(float)).mean(0), rtol=1e-5)
    np.testing.assert_allclose(channels.mean, h.mean(0, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(channels.deviation, h.std(0, dtype=float), rtol=1e-3, atol=1e-6)
    for f in range(F):
        for c in range(7):
            if f == 2 or c == 5:
                assert np.isnan(channels.correlation[f, c])
            else:
                want = np.corrcoef(features[f], h[:, c])[0, 1]
                assert channels.correlation[f, c] == pytest.approx(want, abs=1e-4)
    assert channels.correlation[1, 2] > 0.9


def test_extremes_are_the_largest_places(monkeypatch):
    monkeypatch.setattr(module, "SEGMENT", 10)
    channels = found(N)
    for c in (0, 2, 6):
        assert channels.highest[0, c] == h[:, c].argmax() and channels.lowest[0, c] == h[:, c].argmin()
        values = h[channels.highest[:, c], c]
        assert (np.diff(values) <= 0).all() and (np.diff(h[channels.lowest[:, c], c]) >= 0).all()


def test_places_at_either_side_of_a_border_count_as_one():
    """Of the largest values, in order at 127, 128 (too near), 300 and 500; where there are two segments, two places."""
    values = np.zeros((600, 1), np.float32)
    values[[127, 128, 300, 500], 0] = 5, 4, 3, 2
    found = Extremes(1)
    for start in (0, 256, 512):
        found.add(values[start : start + 256], start)
    assert found.best()[:, 0].tolist() == [127, 300, 500]
    few = Extremes(1)
    few.add(values[:256], 0)
    assert few.best()[:, 0].tolist() == [127, -1, -1]


def test_states_in_deviations():
    channels = found(N)
    states = channels.standardise(h)
    np.testing.assert_allclose(states.std(0), [1, 1, 1, 1, 1, 0, 1], atol=1e-3)
    np.testing.assert_allclose(states.mean(0), 0, atol=1e-3)


def test_a_gate_of_one_has_a_time_constant():
    trace = Trace(np.empty(0), np.ones((2, 1), np.float32), np.ones((2, 1), np.float32))
    assert 0 < measure(iter([trace]), np.ones((1, 2), np.float32), [1]).time[0] < 0.1


def test_names():
    channels = found(N)
    assert [channels.name(c) for c in (0, 3, 4, 6)] == ["1.1", "1.4", "2.1", "2.3"]
    assert [number(name, HIDDEN) for name in ("1.1", "1.4", "2.1", "2.3")] == [0, 3, 4, 6]
    for wrong in ("", "1", "0.1", "1.0", "1.5", "3.1", "2.4", "1.x", "-1.1"):
        with pytest.raises(UserError, match=r"there are 1.1 to 1.4, 2.1 to 2.3"):
            number(wrong, HIDDEN)
