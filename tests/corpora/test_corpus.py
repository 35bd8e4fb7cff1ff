"""Corpora by name, path, folder, glob and table; the cache; what is refused."""

import json
import lzma

import numpy as np
import pytest

from lm.config.options import DataConfig
from lm.corpora.corpus import load_corpus
from lm.corpora.sources import find_files, read_text
from lm.files import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "char-lm"


def load(path, context=8, **options):
    return load_corpus(DataConfig(corpus=str(path), context=context, **options))


def text_of(corpus):
    return corpus.tokenizer.decode(corpus.ids)


def test_embedded_corpora_share_an_alphabet_and_are_split_by_position():
    tiny, plays = load("tiny_shakespeare"), load("shakespeare")
    assert len(tiny.ids) == 1_115_355 and tiny.ids.dtype == np.uint16
    assert tiny.tokenizer.characters == plays.tokenizer.characters
    assert len(tiny.train) == int(0.9 * len(tiny.ids)) and len(tiny.train) + len(tiny.validation) == len(tiny.ids)
    assert text_of(plays).startswith(text_of(tiny)[:100_000])


def test_file_folder_and_glob(tmp_path):
    folder = tmp_path / "texts" / "deep"
    folder.mkdir(parents=True)
    (folder.parent / "b.txt").write_text("second " * 30, encoding="utf-8")
    (folder.parent / "a.txt").write_text("first " * 30 + "\n", encoding="utf-8")
    (folder / "c.txt").write_text("third", encoding="utf-8")
    (folder / ".hidden").write_bytes(b"\xff")
    first, second = "first " * 30 + "\n", "second " * 30
    assert text_of(load(folder.parent / "a.txt")) == first
    assert text_of(load(folder.parent)) == first + second + "\nthird"
    assert text_of(load(folder.parent / "*.txt")) == first + second


def test_line_ends_stay_and_a_byte_order_mark_goes(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbf" + b"one\r\ntwo\r" * 30)
    assert text_of(load(tmp_path / "t.txt")) == "one\r\ntwo\r" * 30


def test_compressed_text(tmp_path):
    (tmp_path / "t.txt.xz").write_bytes(lzma.compress(b"pressed " * 30))
    assert text_of(load(tmp_path / "t.txt.xz")) == "pressed " * 30


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_tables_are_read_through_datasets(tmp_path, ending, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    datasets.disable_progress_bars()
    rows = {"line": ["to be or not to be, " * 8, "that is the question\n"], "number": [1, 2]}
    path = tmp_path / f"t.{ending}"
    table = datasets.Dataset.from_dict(rows)
    {"jsonl": table.to_json, "csv": table.to_csv, "parquet": table.to_parquet}[ending](str(path))
    assert text_of(load(path, column="line")) == "\n".join(rows["line"])
    with pytest.raises(UserError, match=r"no column text; data\.column can be line, number"):
        load(path)
    with pytest.raises(UserError, match="holds int, not text"):
        load(path, column="number")


def test_cache_is_used_until_the_file_changes(tmp_path, cache):
    path = tmp_path / "t.txt"
    path.write_text("abc" * 50, encoding="utf-8")
    first = load(path)
    again = load(path)
    assert isinstance(again.ids, np.memmap) and not isinstance(first.ids, np.memmap)
    assert text_of(again) == text_of(first)
    path.write_text("xyz" * 60, encoding="utf-8")
    assert text_of(load(path)) == "xyz" * 60


def test_a_damaged_cache_is_made_anew(tmp_path, cache):
    path = tmp_path / "t.txt"
    path.write_text("abc" * 50, encoding="utf-8")
    load(path)
    for file in cache.glob("*.npy"):
        file.write_bytes(b"damaged")
    for file in cache.glob("*.json"):
        assert json.loads(file.read_text()) == "abc"
    assert text_of(load(path)) == "abc" * 50


def test_an_unwritable_cache_is_only_slower(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "t.txt").write_text("abc" * 50, encoding="utf-8")
    assert text_of(load(tmp_path / "t.txt")) == "abc" * 50


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"too short", "too few for data.context 8"),
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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny_shakespear", "did you mean tiny_shakespeare"),
        ("/no/such/file.txt", "no such file or folder"),
        ("texts/missing.txt", "no such file or folder"),
        ("*.nothing", "no file there"),
        ("", "no such file or folder"),
    ],
)
def test_missing_corpora_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        find_files(DataConfig(corpus=name))


def test_an_id_of_the_hub_is_tried_there_and_its_absence_is_one_line():
    assert find_files(DataConfig(corpus="karpathy/tiny_shakespeare")) == []
    with pytest.raises(UserError, match="the Hub gave none") as error:
        load("nobody/no-such-data-set")
    assert "\n" not in str(error.value)


def test_position_of_the_first_bad_byte_counts_from_the_start_of_the_file(tmp_path):
    (tmp_path / "t.txt").write_bytes("é".encode() * 10 + b"\xc3")
    with pytest.raises(UserError, match="position 20"):
        read_text(tmp_path / "t.txt")
