"""Texts, stop strings and `generate`."""

import itertools
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lm.sampling
from lm.corpora.tokenizer import CharTokenizer
from lm.sampling.decoder import Decoder, read, score
from lm.sampling.filters import SamplingOptions
from lm.sampling.packed import Packed, pack
from lm.sampling.text import find_stop, generate, start_ids, write
from tests.sampling.helpers import TOKENIZER, make, philox, recompute, same, texts
from tests.sampling.test_decoder import OneByOne

PROMPT = TOKENIZER.encode("ABC")


@pytest.fixture(scope="module")
def model():
    """Packed, where there is a compiler: it then writes many characters at once."""
    return pack(make())


def pieces_of(model, chars, options=None, samples=1, **arguments):
    """The pieces of each sample in their order."""
    decoder = Decoder(model, [read(model, PROMPT)] * samples)
    pieces = list(
        itertools.chain.from_iterable(write(decoder, TOKENIZER, chars, options or SamplingOptions(), **arguments))
    )
    return [[piece for piece in pieces if piece.sample == i] for i in range(samples)]


def joined(pieces):
    return "".join(piece.text for piece in pieces)


# ---- stop strings


def test_the_first_of_a_stop_that_comes_twice_ends_the_text():
    assert find_stop("ab. cd. e", [". ", "x"]) == (2, 4)


def test_stops_by_hand():
    assert find_stop("xyz", ["ab"]) == (3, 0)
    assert find_stop("xya", ["ab", "yb"]) == (2, 0)  # a may begin ab
    assert find_stop("xaab", ["aabc", "b!"]) == (1, 0)  # the longest beginning counts
    assert find_stop("xyab!", ["ab"]) == (2, 4)
    assert find_stop("xabcd", ["abcd", "c"]) == (3, 4)  # c is complete before abcd
    assert find_stop("xabc", ["bc", "abc"]) == (1, 4)  # both end here: the text ends before the longer one
    assert find_stop("ab", ["ab"]) == (0, 2)
    assert find_stop("", ["ab"]) == (0, 0)


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_text_ends_before_the_first_stop(text, stops):
    passed, held, found = "", "", False
    for char in text:
        held += char
        ready, end = find_stop(held, stops)
        passed, held = passed + held[:ready], held[ready:]
        if found := end > 0:
            break
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    expected = text[: min(ends)] if ends else text
    assert found == bool(ends)
    assert passed + held == expected
    assert find_stop(text, stops) == (len(passed), len(expected) if ends else 0)
    assert not any(stop in passed for stop in stops)
    if found:
        assert any(held.startswith(stop) for stop in stops)


@pytest.mark.parametrize("length", [1, 2, 5, 40])
def test_a_stop_across_pieces(model, length):
    """A model without a native step writes pieces of one character, so that every stop string lies across them."""
    slow = make("gru")
    for engine in (slow, model):
        (free,) = pieces_of(engine, 300)
        text = joined(free)
        stop = text[60 : 60 + length]
        (stopped,) = pieces_of(engine, 300, stops=[stop])
        assert joined(stopped) == text[: text.index(stop)]
        assert [piece.finish for piece in stopped][:-1] == [""] * (len(stopped) - 1) and stopped[-1].finish == "stop"
        end = text.index(stop) + length
        assert same(stopped[-1].position, pieces_of(engine, end)[0][-1].position)  # after the stop string, not further
        assert stopped[-1].position.drawn == end


def test_samples_stop_on_their_own(model):
    free = [joined(pieces) for pieces in pieces_of(model, 90, samples=5)]
    stops = [free[0][50:54], free[1][30:34]]
    stopped = pieces_of(model, 90, samples=5, stops=stops)
    for pieces, whole in zip(stopped, free, strict=True):
        places = [whole.find(stop) for stop in stops if stop in whole]
        assert joined(pieces) == (whole[: min(places)] if places else whole)
        assert pieces[-1].finish == ("stop" if places else "length")
    assert len({len(joined(pieces)) for pieces in stopped}) > 1
    assert stopped[0][-1].position.drawn != stopped[1][-1].position.drawn


def test_what_may_become_a_stop_is_passed_on_at_the_end(model):
    whole = joined(pieces_of(model, 20)[0])
    assert joined(pieces_of(model, 20, stops=[whole[-3:] + "\n"])[0]) == whole


# ---- pieces


def test_chars_is_the_number_of_characters(model):
    for chars in (1, 2, 3, 100, 700):
        (pieces,) = pieces_of(model, chars)
        assert len(joined(pieces)) == chars and [piece.finish for piece in pieces][-1] == "length"
        assert pieces[-1].position.drawn == chars
    assert pieces_of(model, 0) == [[]]
    endless = write(Decoder(model, [read(model, PROMPT)]), TOKENIZER, None, SamplingOptions())
    assert len(joined(piece for (piece,) in itertools.islice(endless, 300))) >= 300


def test_text_appears_at_once(model, compiler):
    """The first character comes alone; later ones of a fast model in fewer pieces than there are characters."""
    (pieces,) = pieces_of(model, 3000)
    assert len(pieces[0].text) == 1
    assert len(pieces) < 1500
    (plain,) = pieces_of(make("gru"), 50)
    assert [len(piece.text) for piece in plain] == [1] * 50

    class Slow(Packed):
        def write(self, *arguments):
            time.sleep(0.02)
            return super().write(*arguments)

    (slow,) = pieces_of(Slow(make()), 20)
    assert [len(piece.text) for piece in slow] == [1] * 20


def test_log_probabilities_are_of_each_character(model):
    options = SamplingOptions(1.4, top_k=12)
    for pieces in pieces_of(model, 60, options, samples=2, log_probabilities=True):
        assert all(len(piece.log_probabilities) == len(piece.text) for piece in pieces)
        logs = list(itertools.chain.from_iterable(piece.log_probabilities for piece in pieces))
        assert logs == pytest.approx(score(model, TOKENIZER.encode(joined(pieces)), read(model, PROMPT))[0], abs=1e-4)
    assert all(piece.log_probabilities == [] for piece in pieces_of(model, 60, options)[0])
    stop = joined(pieces)[30:33]
    pieces = pieces_of(model, 60, options, samples=2, log_probabilities=True, stops=[stop])[1]
    assert sum(len(piece.log_probabilities) for piece in pieces) == len(joined(pieces)) <= 30


def test_an_interrupted_text_is_whole():
    model = make("gru")
    whole = joined(pieces_of(model, 20)[0])
    asked = iter([False] * 20 + [True])
    (pieces,) = pieces_of(model, None, stops=[whole[-1] + "\n"], interrupted=lambda: next(asked))
    assert joined(pieces) == whole
    assert pieces[-1].finish == "interrupted" and pieces[-1].position.drawn == 20
    (none,) = pieces_of(model, 20, interrupted=lambda: True)
    assert joined(none) == "" and none[-1].position.drawn == 0


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_an_interrupted_text_continues_where_it_ended(temperature, compiler):
    fast, options = Packed(make()), SamplingOptions(temperature)
    start = [read(fast, PROMPT)] * 3
    whole, _ = texts(Decoder(fast, start, 6), 800, options)
    asked = iter([False] * 9 + [True])
    some, ends = texts(Decoder(fast, start, 6), None, options, interrupted=lambda: next(asked))
    rest, _ = texts(Decoder(fast, [p.position for p in ends], 6), 800 - len(some[0]), options)
    assert [a + b for a, b in zip(some, rest, strict=True)] == whole and {p.finish for p in ends} == {"interrupted"}


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("chars", [1, 300, 531])
def test_fast_text_and_where_it_ends_are_those_of_single_characters(temperature, chars, compiler):
    """To the bit: from there either way continues alike."""
    fast, slow, options = Packed(make()), OneByOne(make()), SamplingOptions(temperature)
    start = [read(fast, TOKENIZER.encode(prompt)) for prompt in ("ABC", "Q", "XYZ")]
    free, _ = texts(Decoder(slow, start, 6), chars, options)
    words = [free[0][100:103], free[1][217:219], free[2][40:42] + "~"] if chars > 1 else []
    for stops in ([], words):
        expected, ends = texts(Decoder(slow, start, 6), chars, options, stops=stops)
        got, last = texts(Decoder(fast, start, 6), chars, options, stops=stops)
        assert got == expected and [p.finish for p in last] == [p.finish for p in ends]
        assert all(same(a.position, b.position) for a, b in zip(last, ends, strict=True))


# ---- generate


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0},
        {"temperature": 0.6},
        {"top_k": 3},
        {"top_p": 0.4},
        {"min_p": 0.3},
        {"seed": 9},
        {"sample": 2},
    ],
    ids=str,
)
def test_each_option_of_generate_equals_recomputation(model, options):
    for engine in (model, make()):
        expected = TOKENIZER.decode(recompute(make(), PROMPT, 40, **options))
        assert "".join(generate(engine, TOKENIZER, "ABC", 40, **options)) == expected
        stop = expected[20:22]
        assert "".join(generate(engine, TOKENIZER, "ABC", 40, stop=stop, **options)) == expected[: expected.index(stop)]
        several = "".join(generate(engine, TOKENIZER, "ABC", 40, stop=["~", stop], **options))
        assert several == expected[: expected.index(stop)]


def test_generate_yields_characters_and_its_defaults_are_a_thousand(model):
    assert list(generate(model, TOKENIZER)) == (letters := list(generate(model, TOKENIZER, "A")))
    assert len(letters) == 1000 and all(len(letter) == 1 for letter in letters)
    assert list(generate(model, TOKENIZER, "A", 0)) == []
    assert len(list(itertools.islice(generate(model, TOKENIZER, "A", None), 1200))) == 1200
    assert lm.sampling.generate is generate
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        _ = lm.sampling.generat


def test_an_empty_prompt_is_the_start_of_a_line_or_the_first_character():
    assert start_ids(CharTokenizer("ab\n"), "").tolist() == [0] and start_ids(CharTokenizer("\tab\n"), "").tolist() == [
        1
    ]
    assert start_ids(CharTokenizer("ba"), "").tolist() == [0]
    assert start_ids(CharTokenizer("ab\n"), "ba?").tolist() == [2, 1, 3]


def test_seeds_and_samples_give_different_texts(model):
    made = {
        "".join(generate(model, TOKENIZER, "A", 30, seed=s, sample=i))
        for s, i in itertools.product((0, 1, 2**64 - 1), (0, 1))
    }
    assert len(made) == 6


def test_a_character_is_drawn_by_its_probability(model):
    """Frequencies of the first character over many samples, against the softmax of the model's logits."""
    position = read(model, PROMPT)
    known = torch.from_numpy(position.logits[:-1]).double()
    written, _ = texts(Decoder(model, [position] * 4000, 1), 1, SamplingOptions(0.7))
    counts = np.bincount(TOKENIZER.encode("".join(written)), minlength=29) / 4000
    assert np.abs(counts - (known / 0.7).softmax(-1).numpy()).max() < 0.03
    first = [int(np.searchsorted((known / 0.7).softmax(-1).cumsum(-1).numpy(), philox(1, i, 1)[0])) for i in range(50)]
    assert "".join(written[:50]) == TOKENIZER.decode(first)
