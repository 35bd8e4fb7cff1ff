"""Characters <-> ids: lossless, in code-point order, equal to the `tokenizers` library."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lm.corpora.sources import read_text
from lm.corpora.tokenizer import UNKNOWN, CharTokenizer
from lm.files import DATA, UserError

TINY = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


def test_ids_of_tiny_shakespeare_are_those_of_nanogpt():
    text = read_text(DATA / "tiny_shakespeare.txt.xz")
    tokenizer = CharTokenizer(text)
    assert tokenizer.characters == TINY and len(tokenizer) == 66
    table = {c: i for i, c in enumerate(sorted(set(text)))}  # how nanoGPT makes its ids
    assert tokenizer.encode(text[:10_000]).tolist() == [table[c] for c in text[:10_000]]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(texts)
def test_round_trip_is_lossless(text):
    tokenizer = CharTokenizer(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(texts, texts)
def test_tokenizer_decodes_what_it_encoded_and_knows_what_it_does_not_know(alphabet, text):
    tokenizer = CharTokenizer(alphabet)
    ids = tokenizer.encode(text)
    assert len(ids) == len(text) and all(0 <= i <= tokenizer.unknown for i in ids)
    decoded = tokenizer.decode(ids)
    assert all(b == (a if a in tokenizer.characters else "\ufffd") for a, b in zip(text, decoded, strict=True))
    assert (tokenizer.decode(tokenizer.encode(text)) == text) == (not tokenizer.missing(text.replace("\ufffd", "")))
    again = CharTokenizer(tokenizer.characters)
    assert again.characters == tokenizer.characters and again.encode(text).tolist() == ids.tolist()


@given(texts, texts)
def test_table_equals_the_tokenizers_library(vocabulary, text):
    tokenizer = CharTokenizer(vocabulary + "ab")
    library = Tokenizer.from_str(tokenizer.to_json())
    ids = tokenizer.encode(text).tolist()
    assert library.encode(text).ids == ids
    assert library.decode(ids) == tokenizer.decode(ids)
    assert library.get_vocab_size() == len(tokenizer)


@given(texts)
def test_unknown_is_the_last_id_and_decodes_to_the_replacement_character(text):
    tokenizer = CharTokenizer("abc")
    ids = tokenizer.encode(text)
    assert ids.max(initial=0) <= 3
    assert tokenizer.decode(ids) == "".join(c if c in "abc" else UNKNOWN for c in text)
    assert tokenizer.missing(text) == "".join(sorted(set(text) - set("abc")))


def test_file_round_trip(tmp_path):
    tokenizer = CharTokenizer("héllo\U0001f600")
    (tmp_path / "t.json").write_text(tokenizer.to_json(), encoding="utf-8")
    assert CharTokenizer.load(tmp_path / "t.json").characters == tokenizer.characters


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"vocab": {"b": 0, "a": 1, "\ufffd": 2}}}'])
def test_a_foreign_file_is_refused(tmp_path, content):
    (tmp_path / "t.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"t\.json"):
        CharTokenizer.load(tmp_path / "t.json")


def test_large_vocabularies_get_wider_ids():
    many = "".join(chr(i) for i in range(0x20, 0xD800)) + "".join(chr(i) for i in range(0x10000, 0x14000))
    tokenizer = CharTokenizer(many)
    assert tokenizer.dtype == np.uint32
    assert tokenizer.decode(tokenizer.encode(many)) == many
