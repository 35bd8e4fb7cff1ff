"""A corpus as a whole: its split, its pieces, and the texts that are refused."""

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
