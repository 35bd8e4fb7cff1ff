"""Numbers and tables as text."""

import math

import pytest

from lm.report.format import align, finite, loss, number, short


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.5678, "1.57"),
        (-48.62, "-48.6"),
        (0.00012345, "0.000123"),
        (99.96, "100"),
        (812.25, "812"),
        (999.6, "1,000"),
        (3250, "3,250"),
        (99_960, "99,960"),
        (123_456, "123k"),
        (999_499, "999k"),
        (999_600, "1M"),
        (-999_600, "-1M"),
        (12_345_678, "12.3M"),
        (999_600_000, "1G"),
        (4.2e12, "4.2T"),
        (999.6e12, "1P"),
        (1.2e15, "1.2P"),
        (999.6e15, "1e+18"),
        (1.234e20, "1.23e+20"),
        (math.nan, "-"),
        (-math.inf, "-"),
    ],
)
def test_short(value, text):
    assert short(value) == text


def test_losses_and_numbers():
    assert loss(1.45678) == "1.4568" and loss(math.nan) == "-" and loss(math.inf) == "-"
    assert number(0.256, ".0%") == "26%" and number(1.005) == "1.00" and number(None, ".1f") == "-"


def test_tables():
    rows = [["run", "mixer", "loss"], ["a", "gru", "1.5"], ["long name", "mingru", "12.25"]]
    assert align(rows) == [
        "run        mixer    loss",
        "------------------------",
        "a          gru       1.5",
        "long name  mingru  12.25",
    ]
    remark = ["a peer of ours", "not installed: pip install it"]
    assert align([*rows, remark], left=1, rule=False) == [
        "run              mixer   loss",
        "a                  gru    1.5",
        "long name       mingru  12.25",
        "a peer of ours  not installed: pip install it",
    ]


def test_json_has_no_infinities():
    values = {"a": [float("inf"), 1.0], "b": (float("nan"),), "c": {"d": -math.inf, "e": "nan", "f": 3}}
    assert finite(values) == {"a": [None, 1.0], "b": [None], "c": {"d": None, "e": "nan", "f": 3}}
