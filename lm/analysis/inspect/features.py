"""Named features of a text, to compare the channels of a model with.

Each is a pure function of a text of n characters that returns (n,) float32: place t is about character t, which the
model has read when it is in state t. One whose name ends in "next" is about character t + 1, which it then predicts.
"""

import re
from collections.abc import Callable

import numpy as np

from lm.analysis.text import SPEECH

SPACE, VOWEL, PUNCTUATION, BLANK = (re.compile(p) for p in (r"\s", r"[aeiouAEIOU]", r"[^\w\s]", r"(?<=\n)\n"))
LETTERS, CAPITALS, DIGIT = re.compile(r"[^\W\d_]"), re.compile(r"\b[A-Z]{2,}\b"), re.compile(r"\d")
ENDING = re.compile(r"(?<=\w)'\w+")
PARENTHESES, QUOTES = re.compile(r"\([^()]*\)|\[[^][]*\]"), re.compile(r'"[^"]*"|“[^”]*”')
SENTENCE_END, AFTER_COLON, QUESTION = re.compile(r"[.?!]"), re.compile(r"[:;][^\n.?!:;]*"), re.compile(r"[^.?!:;]*\?")


def spans(pattern: re.Pattern[str], text: str, group: int = 0) -> np.ndarray:
    """1 within each match, or within a group of it; 0 elsewhere."""
    values = np.zeros(len(text), dtype=np.float32)
    for match in pattern.finditer(text):
        values[slice(*match.span(group))] = 1
    return values


def since(marks: np.ndarray) -> np.ndarray:
    """Characters since the last mark, which itself has 0; the start of the text counts as a mark before it."""
    places = np.arange(len(marks))
    return (places - np.maximum.accumulate(np.where(marks > 0, places, -1))).astype(np.float32)


def count_since(marks: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """How many marks there were since the last start; marks on a start are left out."""
    total = np.cumsum(np.where(starts > 0, 0, marks), dtype=np.float64)
    return (total - np.maximum.accumulate(np.where(starts > 0, total, 0))).astype(np.float32)


def following(values: np.ndarray) -> np.ndarray:
    """The value of the next character; 0 at the end of the text."""
    return np.append(values[1:], np.float32(0))[: len(values)]


def _newline(text: str) -> np.ndarray:
    return spans(re.compile("\n"), text)


def _word_ends(text: str) -> np.ndarray:
    letter = spans(LETTERS, text)
    return letter * (1 - following(letter))


FEATURES: dict[str, Callable[[str], np.ndarray]] = {
    "in a speaker's name": lambda text: spans(SPEECH, text, 1),
    "in a word of capitals": lambda text: spans(CAPITALS, text),
    "capital": lambda text: np.fromiter(map(str.isupper, text), np.float32, len(text)),
    "capital next": lambda text: following(FEATURES["capital"](text)),
    "vowel": lambda text: spans(VOWEL, text),
    "vowel next": lambda text: following(spans(VOWEL, text)),
    "space or newline": lambda text: spans(SPACE, text),
    "word ends next": _word_ends,
    "letters of the word so far": lambda text: since(1 - spans(LETTERS, text)),
    "after an apostrophe in a word": lambda text: spans(ENDING, text),
    "punctuation": lambda text: spans(PUNCTUATION, text),
    "punctuation next": lambda text: following(spans(PUNCTUATION, text)),
    "after a colon or semicolon": lambda text: spans(AFTER_COLON, text),
    "in parentheses": lambda text: spans(PARENTHESES, text),
    "in quotes": lambda text: spans(QUOTES, text),
    "digit": lambda text: spans(DIGIT, text),
    "in a question": lambda text: spans(QUESTION, text),
    "characters since a sentence's end": lambda text: since(spans(SENTENCE_END, text)),
    "newline next": lambda text: following(_newline(text)),
    "column in the line": lambda text: since(_newline(text)),
    "blank line": lambda text: spans(BLANK, text),
    "characters since a blank line": lambda text: since(spans(BLANK, text)),
    "lines since a blank line": lambda text: count_since(_newline(text), spans(BLANK, text)),
    "place in the text": lambda text: np.linspace(0, 1, len(text), dtype=np.float32),
}
"""Every feature by its name. One that is constant, such as digits in a text without them, has no correlation."""


def table(text: str) -> np.ndarray:
    """All features of a text of n characters: (F, n) float32, in the order of FEATURES."""
    return np.stack([feature(text) for feature in FEATURES.values()])
