"""Which options the loss is drawn against."""

from pathlib import Path

import pytest

from lm.compare.parameters import FEW, MOST, parameters
from lm.compare.runs import RunData


def found(*configs: dict[str, str], mixers: str = ""):
    names = mixers.split() or ["mingru"] * len(configs)
    pairs = zip(names, configs, strict=True)
    return parameters([RunData(Path(), name, {"model.mixer": name} | config) for name, config in pairs])


def test_options_that_differ_between_runs_of_a_mixer():
    rates = [{"optim.lr": rate, "seed": rate} for rate in ("1", "2", "3")]
    (one,) = found(*rates)
    assert (one.key, one.values, one.ticks) == ("optim.lr", [1, 2, 3], [1, 2, 3])
    assert found(*rates, mixers="gru lstm mingru") == []  # each mixer has its own
    assert found(*rates[:2], rates[0], mixers="gru gru lstm")[0].values == [1, 2, 1]
    assert found() == found({}) == found({}, {}) == []


def test_words_are_words_and_so_are_numbers_among_them():
    (one,) = found({"optim.lr": "none"}, {"optim.lr": "1"})
    assert (one.values, one.log, one.ticks) == (["none", "1"], False, [])
    assert found({"data.column": "nan"}, {"data.column": "1e999"})[0].values == ["nan", "1e999"]
    assert found({"data.column": "1"}, {"data.column": "1.0"})[0].log is False


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ("0.005 0.01 0.02 0.05", True),
        ("0.001 0.1 0.2 0.3", False),
        ("0 1 10", False),
        ("-1 1 10", False),
        ("8 16 32", True),
    ],
)
def test_the_axis_on_which_the_values_are_spread_evenly(values, log):
    assert found(*({"optim.lr": value} for value in values.split()))[0].log is log


def test_limits():
    assert found(*({"optim.lr": str(n)} for n in range(FEW + 1)))[0].ticks == []
    assert len(found({f"a{n}": "1" for n in range(MOST + 5)}, {f"a{n}": "2" for n in range(MOST + 5)})) == MOST
