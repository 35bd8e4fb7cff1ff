"""The YAML that configurations may have: numbers as Python writes them, and nothing that surprises."""

import math

import pytest

from lm.config.strict_yaml import LARGEST, read_yaml, write_yaml
from lm.files import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("-3", -3), ("1e-3", 1e-3), ("1e3", 1000.0), ("1.5", 1.5), (".5", 0.5), (".inf", math.inf),
        ("nan", "nan"), ("2026-11-24", "2026-11-24"), ("null", None), ("true", True), ("on", True),
        ("[a, 1]", ["a", 1]), ("a: {b: 2}", {"a": {"b": 2}}), ("'1'", "1"),
    ],
)  # fmt: skip
def test_values(text, value):
    assert read_yaml(text) == value and type(read_yaml(text)) is type(value)


def test_what_is_written_reads_back_in_its_order():
    values = {"b": "1e3", "a": ["null", "2026-11-24", 1e-3, None, True, "\n", "é"], "c": {"d": "on"}}
    assert read_yaml(write_yaml(values)) == values and list(read_yaml(write_yaml(values))) == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: &x 2", "line 2: anchors"),
        ("a: !!int 3", "line 1: tags"),
        ("a: 1\na: 2", "line 2: a is there twice"),
        ("? [1]\n: 2", "line 1: a key must be a word"),
        ("[" * 9, "line 1: nested too deeply"),
        ("a: [", "not YAML"),
        ("x" * (LARGEST + 1), "1,048,577 characters; such a file has at most 1,048,576"),
    ],
)
def test_refused(text, message):
    with pytest.raises(UserError) as refused:
        read_yaml(text)
    assert message in str(refused.value)


def test_eight_levels_are_allowed():
    assert read_yaml("[" * 8 + "]" * 8)
