"""What fields accept: every kind of bound and type by hand, marks, and the texts that help shows."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest

from lm.config import options
from lm.config.fields import (
    FREE_TEXT,
    POSITIONAL,
    Count,
    Fraction,
    FreeText,
    Natural,
    NonNegative,
    Positive,
    Range,
    Share,
    fields,
    fits,
    nearest,
)  # fmt: skip
from lm.files import UserError


@dataclass
class Inner:
    """A section."""

    share: Share = 0.5
    """a share"""


@dataclass
class Sample:
    """Options of nothing."""

    run: Annotated[str, POSITIONAL]
    """what is
    run"""
    count: Count | None = None
    """how many"""
    several: list[Natural] = field(default_factory=lambda: [1, 2])
    """some numbers"""
    mode: Literal["fast", 8] | list[Literal["fast", 8]] = "fast"
    """a mode, or several"""
    text: FreeText = "\n"
    """any text"""
    inner: Inner = field(default_factory=Inner)


@dataclass
class Derived(Sample):
    """Another default and another docstring for one field."""

    mode: Literal["fast", 8] = 8
    """fast or 8"""


FIELDS = fields(Sample)


def test_fields_have_full_names_types_marks_and_defaults():
    assert list(FIELDS) == ["run", "count", "several", "mode", "text", "inner.share"]
    assert FIELDS["count"].kind == int | None and FIELDS["count"].marks == (Range(least=1),)
    assert FIELDS["several"].default == [1, 2] and FIELDS["several"].marks == (Range(least=0),)
    assert POSITIONAL in FIELDS["run"].marks and FREE_TEXT in FIELDS["text"].marks
    assert FIELDS["inner.share"].default == 0.5


def test_the_text_is_the_docstring_in_one_line_and_the_values_that_it_does_not_name():
    assert {key: field.text for key, field in FIELDS.items()} == {
        "run": "what is run", "count": "how many", "several": "some numbers", "mode": "a mode, or several [fast, 8]",
        "text": "any text", "inner.share": "a share",
    }  # fmt: skip
    mode = fields(Derived)["mode"]
    assert mode.text == "fast or 8" and mode.default == 8
    assert fields(Derived)["run"].text == "what is run"


def test_every_option_of_a_run_has_a_text():
    assert all(field.text for field in options.FIELDS.values())


ACCEPTED = [
    ("count", 1), ("count", None), ("count", 2**31 - 1), ("several", []), ("several", [0, 3]), ("mode", 8),
    ("mode", ["fast", 8]), ("text", "a\nb"), ("inner.share", 0), ("inner.share", 1), ("inner.share", 0.25),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), ACCEPTED)
def test_accepted(key, value):
    FIELDS[key].check(value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("count", 0, "--count must be at least 1, not 0"),
        ("count", 2**31, "--count must be at most 2,147,483,647, not 2147483648"),
        ("count", 10**400, "--count must be at most 2,147,483,647, not a number of more than 18 digits"),
        ("count", 1.0, "--count: expected a whole number or null, not 1.0"),
        ("count", True, "--count: expected a whole number or null, not True"),
        ("several", [1, -1], "--several must be at least 0, not -1"),
        ("several", [1, "x"], "--several: expected a whole number, not x"),
        ("several", 1, "--several: expected a whole number, not 1"),
        ("mode", "fats", "--mode: expected fast or 8, not fats; did you mean fast?"),
        ("mode", ["fast", 9], "--mode: expected fast or 8, not a list of 2"),
        ("text", "\ud800", "--text has a character that no such text can have: '\\ud800'"),
        ("run", "a\nb", "--run has a character that no such text can have: 'a\\nb'"),
        ("run", "a/" + "b" * 256, "--run: a/bbb"),
        ("inner.share", 1.5, "--inner.share must be between 0 and 1, not 1.5"),
        ("inner.share", -0.1, "--inner.share must be between 0 and 1, not -0.1"),
        ("inner.share", math.nan, "--inner.share must be a finite number, not nan"),
        ("inner.share", -math.inf, "--inner.share must be a finite number, not -inf"),
    ],
)
def test_refused(key, value, message):
    with pytest.raises(UserError) as refused:
        FIELDS[key].check(value, "--")
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (Count, [1, 5], [0]),
        (Natural, [0, 1], [-1]),
        (Positive, [1e-9, 3], [0, -1]),
        (NonNegative, [0, 0.1], [-1e-9]),
        (Fraction, [0, 0.999], [1, -0.1]),
    ],
)
def test_the_common_bounds(kind, right, wrong):
    (bound,) = kind.__metadata__
    assert not any(bound.expected(value) for value in right)
    assert all(bound.expected(value) for value in wrong)


def test_bounds_include_or_exclude_their_ends():
    assert Range(least=2, most=4).expected(2) == Range(least=2, most=4).expected(4) == ""
    assert Range(above=2).expected(2) == "above 2" and Range(above=2).expected(2.1) == ""
    assert Range(below=4, text="below 4").expected(4) == "below 4" and Range(below=4).expected(3.9) == ""
    assert Range(most=1000).expected(1001) == "at most 1,000"


def test_types_fit_exactly_but_for_whole_numbers_as_floats():
    assert fits(1, float) and fits(1.0, float) and not fits(1.0, int) and not fits(True, int) and not fits(1, bool)
    assert fits("a", str | None) and fits(None, str | None) and not fits(None, str)
    assert not fits(1, Literal[True]) and fits(True, Literal[True])
    assert fits(["a"], list[str]) and not fits(["a", 1], list[str])


def test_the_nearest_word():
    assert nearest("widht", ["width", "layers"]) == "; did you mean width?"
    assert nearest("xyz", ["width", "layers"]) == ""
