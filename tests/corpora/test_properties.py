"""Properties of tokenizer and batches that hold for every input, looked for by hypothesis."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lm.corpora.batches import random_windows, stream, streams, windows
from lm.corpora.tokenizer import CharTokenizer

unicode = st.text(st.characters(exclude_categories=["Cs"]), max_size=100)


@given(unicode, unicode)
def test_tokenizer_decodes_what_it_encoded_and_knows_what_it_does_not_know(alphabet, text):
    tokenizer = CharTokenizer(alphabet)
    ids = tokenizer.encode(text)
    assert len(ids) == len(text) and all(0 <= i <= tokenizer.unknown for i in ids)
    decoded = tokenizer.decode(ids)
    assert all(b == (a if a in tokenizer.characters else "\ufffd") for a, b in zip(text, decoded, strict=True))
    assert (tokenizer.decode(tokenizer.encode(text)) == text) == (not tokenizer.missing(text.replace("\ufffd", "")))
    again = CharTokenizer(tokenizer.characters)
    assert again.characters == tokenizer.characters and again.encode(text).tolist() == ids.tolist()


@given(st.integers(2, 400), st.integers(1, 80), st.integers(1, 500))
def test_each_character_but_the_first_is_scored_once_from_the_one_before_it(length, context, characters):
    ids = np.arange(length)
    for pieces in (windows(ids, context, characters), stream(ids, characters)):
        scored: list[int] = []
        for x, y in pieces:
            assert np.array_equal(y, x + 1) and x.dtype == np.int64
            scored += y.ravel().tolist()
        assert scored == list(range(1, length))


@given(st.integers(1, 60), st.data())
def test_random_windows_are_in_range_and_functions_of_seed_step_and_row(context, data):
    length = data.draw(st.integers(context + 1, 500))
    seed, step = data.draw(st.integers(0, 2**63 - 1)), data.draw(st.integers(0, 2**40))
    first, count = data.draw(st.integers(0, 50)), data.draw(st.integers(1, 8))
    x, y = random_windows(np.arange(length), context, seed, step, range(first, first + count))
    assert x.shape == (count, context) and x.min() >= 0 and y.max() < length and np.array_equal(y, x + 1)
    alone, _ = random_windows(np.arange(length), context, seed, step, range(first, first + 1))
    assert np.array_equal(alone[0], x[0])


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 500), st.integers(0, 60), st.integers(0, 99))
def test_streams_stay_in_their_part_and_go_on_where_they_were(batch, context, extra, step, seed):
    ids = np.arange(batch * (context + 1) + extra)
    (x, y), fresh = streams(ids, context, seed, step, range(batch), batch)
    assert x.shape == (batch, context) and x.min() >= 0 and y.max() < len(ids) and np.array_equal(y, x + 1)
    (after, _), begins = streams(ids, context, seed, step + 1, range(batch), batch)
    assert begins or np.array_equal(after[:, 0], y[:, -1])
    assert fresh or step > 0
