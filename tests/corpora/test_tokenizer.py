"""Characters <-> ids: lossless, in code-point order, equal to the `tokenizers` library."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lm.corpora.sources import read_text
from lm.corpora.tokenizer import BYTES, UNKNOWN, ByteTokenizer, CharTokenizer, make_tokenizer
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


# ---- bytes


@given(texts)
def test_ids_of_bytes_are_those_of_utf_8(text):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids.tolist() == list(text.encode()) and ids.dtype == tokenizer.dtype
    assert tokenizer.decode(ids) == text and tokenizer.missing(text) == ""
    assert tokenizer.count(ids) == CharTokenizer(text).count(CharTokenizer(text).encode(text))
    assert tokenizer.count(ids) == (len(text), len(text.encode()))


@given(texts)
def test_bytes_equal_the_tokenizers_library(text):
    tokenizer = ByteTokenizer()
    library = Tokenizer.from_str(tokenizer.to_json())
    assert library.encode(text).ids == tokenizer.encode(text).tolist()
    assert library.decode(list(text.encode())) == text
    assert library.get_vocab_size() == len(tokenizer) == 257


@given(st.binary(max_size=40))
def test_any_bytes_are_kept_and_those_that_are_not_utf_8_are_shown_as_the_replacement_character(raw):
    tokenizer = ByteTokenizer()
    text = raw.decode("utf-8", "surrogateescape")
    assert tokenizer.encode(text).tobytes() == np.frombuffer(raw, np.uint8).astype(np.uint16).tobytes()
    assert tokenizer.decode(list(raw)) == "".join(UNKNOWN if "\ud800" <= c <= "\udfff" else c for c in text)


@given(st.binary(max_size=40), st.integers(0, 40))
def test_a_character_appears_with_its_last_byte(raw, cut):
    """Decoded in two parts, with the bytes of a character that is not whole taken along, or at once: the same text."""
    tokenizer, ids = ByteTokenizer(), np.frombuffer(raw, np.uint8).astype(np.int64)
    text, used = tokenizer.decode_begun(ids[:cut])
    assert len(tokenizer.encode(text)) == used and min(cut, len(ids)) - used < 4
    rest = raw[used:].decode("utf-8", "surrogateescape")
    assert text + rest == raw.decode("utf-8", "surrogateescape")
    assert CharTokenizer("abc").decode_begun(np.array([0, 3, 1])) == (f"a{UNKNOWN}b", 3)


def test_lone_surrogates_of_other_kinds_are_refused():
    with pytest.raises(UserError, match="lone surrogates"):
        ByteTokenizer().encode("a\ud800")


@given(texts, st.sampled_from([0.9, 0.5, 1.0]))
def test_a_share_of_the_characters_ends_at_the_same_place_in_bytes(text, share):
    bytes_, characters = ByteTokenizer(), CharTokenizer(text)
    ids, raw = characters.encode(text), bytes_.encode(text)
    place = characters.place(ids, share)
    assert place == int(share * len(text))
    assert bytes_.decode(raw[: bytes_.place(raw, share)]) == text[:place]


def test_counting_and_places_in_pieces(monkeypatch):
    text = "aж語😀" * 50
    bytes_ = ByteTokenizer()
    raw = bytes_.encode(text)
    whole = bytes_.count(raw), [bytes_.place(raw, share / 100) for share in range(101)]
    monkeypatch.setattr("lm.corpora.tokenizer.PIECE", 7)
    assert (bytes_.count(raw), [bytes_.place(raw, share / 100) for share in range(101)]) == whole
    assert whole[0] == (200, 500) and whole[1][::25] == [0, 123, 250, 373, 500]


def test_the_vocabulary_says_that_it_is_bytes(tmp_path):
    """No text has that vocabulary: the characters of a tokenizer are sorted."""
    assert type(make_tokenizer(BYTES)) is ByteTokenizer and len(BYTES) == 256
    assert type(make_tokenizer("abc")) is CharTokenizer and CharTokenizer(BYTES).characters != BYTES
    (tmp_path / "t.json").write_text(ByteTokenizer().to_json(), encoding="utf-8")
    assert type(CharTokenizer.load(tmp_path / "t.json")) is ByteTokenizer
