"""Command lines from dataclasses: how words are read, what help says, and back from options to the command."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest

from lm.config.command import Parser, command_line, parse
from lm.config.fields import POSITIONAL, REPEATED, Count, FreeText, Output
from lm.files import UserError


@dataclass
class Options:
    """Do
    something."""

    runs: Annotated[list[str], POSITIONAL]
    """which runs"""
    size: Count = 3
    """how large"""
    rate: float | None = None
    """how fast (default: as fast as it goes)"""
    text: FreeText | None = None
    """what to say"""
    stop: Annotated[list[FreeText], REPEATED] = field(default_factory=list)
    """where to stop"""
    widths: list[int] = field(default_factory=lambda: [1, 2])
    """how wide"""
    kind: Literal["a", "b", 32] = "a"
    """which kind"""
    quiet: bool = False
    """say nothing"""
    out: Output | None = None
    """where to"""
    insert: str | None = None
    """a document"""


def read(*words: str) -> Options:
    return parse(Options, list(words), "char-lm do", "RUN ...")


def test_words_become_values_of_their_types():
    given = "a b --size 5 --rate 1e-3 --text 7 --stop x --stop y --widths 4 5 6 --kind 32 --quiet".split()
    assert read(*given) == Options(["a", "b"], 5, 1e-3, "7", ["x", "y"], [4, 5, 6], 32, True)
    assert read("a", "--size=4", "--text=") == Options(["a"], 4, text="")


@pytest.mark.parametrize("text", ["null ", "true", "1", "[a]", "'quoted'", "a: b", "\n", "~", "#", "!x", "&a"])
def test_a_text_stays_as_it_is(text):
    assert read("a", "--text", text).text == text


def test_null_is_none_where_there_may_be_none():
    assert read("a", "--text", "null").text is None and read("null").runs == ["null"]
    assert read("a", "--rate", "null").rate is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the following arguments are required: runs"),
        ("a --siez 3", "unknown option --siez; did you mean --size?"),
        ("a --siez=3", "unknown option --siez; did you mean --size?"),
        ("a --siz 3", "unknown option --siz; did you mean --size?"),
        ("a --size", "argument --size: expected one argument"),
        ("a --size x", "--size: expected a whole number, not x"),
        ("a --size 0", "--size must be at least 1, not 0"),
        ("a --size [", "--size: expected a whole number, not ["),
        ("a --kind c", "--kind: expected a or b or 32, not c"),
        ("a --widths 1 x", "--widths: expected a whole number, not x"),
        ("a --out /none/a", "cannot write /none/a: No such file or directory"),
        ("a --out", "argument --out: expected one argument"),
    ],
)
def test_a_mistake_is_one_line(words, message):
    with pytest.raises(UserError) as refused:
        read(*words.split())
    assert message in str(refused.value)


def test_help_has_an_entry_for_each_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        read("--help")
    assert stopped.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["usage: char-lm do RUN ...", "", "Do something."]
    assert "  RUNS                          which runs" in lines
    assert "  --size                        how large (default: 3)" in lines
    assert "  --rate                        how fast (default: as fast as it goes)" in lines
    assert "  --widths                      how wide (default: 1 2)" in lines
    assert (
        "  --quiet                       say nothing" in lines
        and "  --stop                        where to stop" in lines
        and "  --kind                        which kind [a, b, 32] (default: a)" in lines
    )


def test_help_wraps_long_texts():

    parser = Parser("x", "", Options)
    assert all(len(line) <= 110 for line in parser.format_help().splitlines())


def test_a_command_line_says_what_is_not_the_default():
    options = Options(["a b"], size=5, widths=[7, 8], quiet=True, insert="README.md#x", kind=32)
    assert command_line("char-lm do", options) == "char-lm do 'a b' --size 5 --widths 7 8 --kind 32 --quiet"
    assert read(*"a --size 5 --widths 7 8 --quiet".split()) == Options(["a"], 5, widths=[7, 8], quiet=True)
