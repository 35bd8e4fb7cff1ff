"""Features of a small text, counted by hand."""

import numpy as np
import pytest

from lm.analysis.inspect.features import FEATURES, table

TEXT = "AY:/Oh, it's (so)!//B:/Who?".replace("/", "\n")
BY_HAND = {  # below each character, its digit; a dot for 0
    #                              AY:/Oh, it's (so)!//B:/Who?
    "in a speaker's name":          "11..................1......",
    "in a word of capitals":        "11.........................",
    "capital":                      "11..1...............1..1...",
    "capital next":                 "1..1...............1..1....",
    "vowel":                        "1...1...1......1.........1.",
    "vowel next":                   "...1...1......1.........1..",
    "space or newline":             "...1...1....1.....11..1....",
    "word ends next":               ".1...1...1.1...1....1....1.",
    "letters of the word so far":   "12..12..12.1..12....1..123.",
    "after an apostrophe in a word": "..........11...............",
    "punctuation":                  "..1...1...1..1..11...1....1",
    "punctuation next":             ".1...1...1..1..11...1....1.",
    "after a colon or semicolon":   "..1..................1.....",
    "in parentheses":               ".............1111..........",
    "in quotes":                    "...........................",
    "digit":                        "...........................",
    "in a question":                "......................11111",
    "newline next":                 "..1..............11..1.....",
    "blank line":                   "...................1.......",
    "lines since a blank line":     "...1111111111111112...11111",
}  # fmt: skip
COUNTED = {
    "characters since a sentence's end": [*range(1, 18), *range(9), 0],
    "column in the line": [1, 2, 3, *range(15), 0, 0, 1, 2, *range(5)],
    "characters since a blank line": [*range(1, 20), *range(8)],
    "place in the text": [i / 26 for i in range(27)],
}


@pytest.mark.parametrize("name", FEATURES)
def test_by_hand(name):
    want = COUNTED.get(name) or [0 if digit == "." else int(digit) for digit in BY_HAND[name]]
    np.testing.assert_allclose(FEATURES[name](TEXT), want, rtol=1e-6)


def test_marks_that_the_text_has_not():
    assert FEATURES["in quotes"]('He said "no" and “yes”').tolist() == [0] * 8 + [1] * 4 + [0] * 5 + [1] * 5
    assert FEATURES["digit"]("a12").tolist() == [0, 1, 1]
    assert FEATURES["in parentheses"]("([x](").tolist() == [0, 1, 1, 1, 0]
    assert FEATURES["in a question"]("So. Is it? No.").tolist() == [0] * 3 + [1] * 7 + [0] * 4


@pytest.mark.parametrize("text", ["a", "\n", "\n\n\n", "?", "é\U0001f600x"])
def test_a_value_for_each_character(text):
    values = table(text)
    assert values.shape == (len(FEATURES), len(text)) and values.dtype == np.float32 and np.isfinite(values).all()
