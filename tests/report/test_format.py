"""Numbers and tables as text."""

from lm.report.format import finite


def test_json_has_no_infinities():
    assert finite({"a": [float("inf"), 1.0], "b": (float("nan"),)}) == {"a": [None, 1.0], "b": [None]}
