"""A corpus as a whole: its split, its pieces, and the texts that are refused."""

import gzip
import lzma

import numpy as np
import pytest

from lm.config.options import DataConfig
from lm.corpora import corpus as module
from lm.corpora.batches import random_windows, shuffled_windows, streams
from lm.files import UserError
from tests.corpora.conftest import load, text_of


def test_embedded_corpora_share_an_alphabet_and_are_split_by_position():
    tiny, plays = load("tiny_shakespeare"), load("shakespeare")
    assert len(tiny.ids) == 1_115_355 and tiny.ids.dtype == np.uint16
    assert tiny.tokenizer.characters == plays.tokenizer.characters
    assert len(tiny.train) == 1_003_819 and len(tiny.validation) == 111_536
    assert np.array_equal(tiny.ids, np.concatenate([tiny.train, tiny.validation]))
    assert text_of(plays).startswith(text_of(tiny)[:100_000])
    assert str(tiny) == "1,115,355 characters, 65 distinct"


def test_training_reads_the_first_nine_tenths_and_validation_the_last(tmp_path):
    """Each position has a character of its own, so that a batch shows where it is from."""
    (tmp_path / "t.txt").write_text("".join(chr(0x4E00 + i) for i in range(1000)), encoding="utf-8")
    corpus = load(tmp_path / "t.txt")
    config = DataConfig(context=8, batch_size=4)
    (x, y), fresh = corpus.batch(config, 1, 2, range(4))
    assert fresh and np.array_equal(x, shuffled_windows(np.arange(900), 8, 1, 2, range(4), 4)[0]) and y.max() < 900
    config.sampling = "windows"
    (x, y), fresh = corpus.batch(config, 1, 2, range(4))
    assert fresh and np.array_equal(x, random_windows(np.arange(900), 8, 1, 2, range(4))[0]) and y.max() < 900
    config.sampling = "streams"
    for step, begins in ((0, True), (1, False)):
        (x, _), fresh = corpus.batch(config, 1, step, range(1, 3))
        assert fresh == begins and np.array_equal(x, streams(np.arange(900), 8, 1, step, range(1, 3), 4)[0][0])
    windows, sequence = corpus.validation_pieces(8, 10**6)
    assert [y.tolist() for _, y in sequence] == [[list(range(901, 1000))]]
    assert np.concatenate([x.ravel() for x, _ in windows]).tolist() == list(range(900, 999)) and windows.context == 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"too short", "too few for data.context 8"),
        (b"ab" * 40, r"80 characters are too few for data.context 8: its validation tenth has 8 and needs 9"),
        (b"a" * 500, "single character"),
        (b"fine until \xff here" * 50, "byte 0xff at position 11"),
        (b"cut \xe2\x82", "byte 0xe2 at position 4"),
        ("sixteen bits".encode("utf-16"), "UTF-16"),
        (b"binary \0 data" * 50, "NUL character at position 7"),
    ],
)
def test_unusable_texts_are_refused(tmp_path, content, message):
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "t.txt")


def test_the_shortest_text_that_is_long_enough(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"ab" * 45)
    assert len(load(tmp_path / "t.txt").validation) == 9


@pytest.mark.parametrize(("characters", "batch_size", "context"), [(17_000, 512, 64), (1_000, 200, 8), (1_000, 112, 8)])
def test_streams_that_are_shorter_than_the_context_are_refused(tmp_path, characters, batch_size, context):
    """Their rows would overlap, or go beyond the end of the text."""
    (tmp_path / "t.txt").write_text("ab" * (characters // 2), encoding="utf-8")
    config = DataConfig(corpus=str(tmp_path / "t.txt"), context=context, batch_size=batch_size, sampling="streams")
    with pytest.raises(UserError) as refused:
        module.load(config)
    length = int(0.9 * characters) // batch_size
    assert f"into streams of {length}, and data.context {context} needs {context + 1}" in str(refused.value)
    assert f"data.batch_size {batch_size} cuts the {int(0.9 * characters):,} characters" in str(refused.value)
    config.batch_size = int(0.9 * characters) // (context + 1)
    assert len(module.load(config).ids) == characters
    config.sampling, config.batch_size = "windows", batch_size
    assert len(module.load(config).ids) == characters


# ---- bytes


@pytest.mark.parametrize("ending", ["", ".gz", ".xz", ".zst"])
@pytest.mark.parametrize("content", [bytes(range(256)) * 3, "ж語\r\n".encode() * 40, "ж語".encode("utf-16") * 40])
def test_bytes_are_taken_from_any_file(tmp_path, content, ending):
    """Binary, text, text in another encoding; nothing is dropped or changed."""
    packed = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}
    if ending == ".zst":
        packed[ending] = pytest.importorskip("zstandard").compress
    (tmp_path / f"t{ending}").write_bytes(packed[ending](content))
    corpus = load(tmp_path / f"t{ending}", vocabulary="bytes")
    assert corpus.ids.astype(np.uint8).tobytes() == content
    again = load(tmp_path / f"t{ending}", vocabulary="bytes")
    assert again.ids.tolist() == corpus.ids.tolist() and again.border == corpus.border and again.digest == corpus.digest
    assert again.ids.filename != corpus.ids.filename and str(again) == f"{len(content)} bytes, 256 distinct"


def test_both_vocabularies_split_a_text_at_the_same_character(tmp_path):
    """Although 90 % of the bytes of this one are far from 90 % of its characters. Both are in the cache."""
    text = "abcdefgh" * 100 + "語" * 400
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    for _ in range(2):
        bytes_, characters = (load(tmp_path / "t.txt", vocabulary=kind) for kind in ("bytes", "characters"))
        assert bytes_.tokenizer.decode(bytes_.validation) == "語" * 120
        assert characters.tokenizer.decode(characters.validation) == "語" * 120
    assert bytes_.bytes_per_character(10**6) == 359 / 119 and characters.bytes_per_character(10**6) == 3
    tuning = [load(tmp_path / "t.txt", vocabulary=kind, tuning=True) for kind in ("bytes", "characters")]
    assert [corpus.tokenizer.decode(corpus.validation) for corpus in tuning] == ["語" * 108] * 2


def test_several_files_are_joined_by_a_line_end_in_bytes_too(tmp_path):
    for name, content in (("a", b"\xff\xe2\x82"), ("b", b"\x82" * 200)):
        (tmp_path / name).write_bytes(content)
    assert load(tmp_path / "*", vocabulary="bytes").ids.tolist() == [0xFF, 0xE2, 0x82, 0x0A] + [0x82] * 200
