"""Encoding in constant memory gives the ids and the digest of the tokenizer, which encodes a text at once."""

import hashlib
import io
import tracemalloc

import numpy as np
import pytest

from lm.corpora import encoder
from lm.corpora.encoder import BLOCK, checksums_of, encode
from lm.corpora.tokenizer import BYTES, ByteTokenizer, CharTokenizer

LETTERS = [chr(code) for code in range(0x21, 0x2FFFF) if not 0xD800 <= code < 0xE000 and code != 0xFFFD]


def check(text: str, pieces: list[str]) -> None:
    file = io.BytesIO()
    found = encode(pieces, file)
    tokenizer = CharTokenizer("".join(set(text)))
    file.seek(0)
    ids = np.load(file)
    assert found.tokenizer.characters == tokenizer.characters and found.length == len(text)
    assert ids.dtype == tokenizer.dtype and np.array_equal(ids, tokenizer.encode(text))
    assert found.digest == hashlib.sha256(tokenizer.characters.encode() + ids.tobytes()).hexdigest()
    assert found.checksums == checksums_of(ids.tobytes()) and len(found.checksums) == -(-ids.nbytes // BLOCK)


@pytest.mark.parametrize("text", ["", "a", "banana\ufffd band", "zyx" * 1000 + "a"])
def test_pieces_of_any_length(text, monkeypatch):
    monkeypatch.setattr(encoder, "CHUNK", 7)
    monkeypatch.setattr(encoder, "BLOCK", 14)
    monkeypatch.setattr("tests.corpora.test_encoder.BLOCK", 14)
    for size in (1, 3, 10_000):
        check(text, [text[i : i + size] for i in range(0, len(text), size)])


@pytest.mark.parametrize("count", [65_535, 65_536, 65_537])
@pytest.mark.parametrize("unknown", ["", "\ufffd"])
def test_the_width_of_the_ids_grows_with_the_vocabulary(count, unknown, monkeypatch):
    """The first pieces are written with two bytes a character, whatever comes later."""
    monkeypatch.setattr(encoder, "CHUNK", 1000)
    monkeypatch.setattr(encoder, "BLOCK", 2000)
    monkeypatch.setattr("tests.corpora.test_encoder.BLOCK", 2000)
    text = "ba" * 3000 + unknown + "".join(reversed(LETTERS[:count])) + "ab" * 10
    check(text, [text[i : i + 1777] for i in range(0, len(text), 1777)])


def test_bytes_are_their_own_ids():
    file, text = io.BytesIO(), "aж\udcff語"  # the byte 0xff is not UTF-8
    found = encode([text[:2], "", text[2:]], file, ByteTokenizer())
    file.seek(0)
    ids = np.load(file)
    assert ids.tolist() == list(text.encode("utf-8", "surrogateescape")) and found.length == len(ids) == 7
    assert found.digest == hashlib.sha256(BYTES.encode() + ids.tobytes()).hexdigest()
    assert found.checksums == checksums_of(ids.tobytes()) and type(found.tokenizer) is ByteTokenizer


@pytest.mark.parametrize("tokenizer", [None, ByteTokenizer()])
def test_memory_does_not_grow_with_the_text(tmp_path, tokenizer):
    peaks = []
    for count in (12, 40):
        with (tmp_path / str(count)).open("x+b") as file:
            tracemalloc.start()
            encode(("to be or not to be\n" * 50_000 for _ in range(count)), file, tokenizer)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
