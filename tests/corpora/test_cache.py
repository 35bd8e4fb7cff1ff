"""The cache of encoded corpora: used until the file changes, verified, bounded; damage is only slower."""

import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from lm.corpora import cache as module
from tests.corpora.conftest import load, text_of


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("abc" * 50, encoding="utf-8")
    return path


def is_cached(corpus) -> bool:
    """Whether it was in the cache already, and not just put there."""
    return Path(corpus.ids.filename).suffix == ".npy"


def test_it_is_used_until_the_file_changes(text):
    first, again = load(text), load(text)
    assert is_cached(again) and not is_cached(first)
    assert text_of(again) == text_of(first) and again.digest == first.digest
    text.write_text("xyz" * 60, encoding="utf-8")
    assert text_of(load(text)) == "xyz" * 60


def test_the_digest_is_that_of_the_characters_and_the_ids(text):
    expected = hashlib.sha256(b"abc" + np.array([0, 1, 2] * 50, np.uint16).tobytes()).hexdigest()
    assert load(text).digest == load(text).digest == expected


@pytest.mark.parametrize("name", ["npy", "json"])
@pytest.mark.parametrize("content", [b"", b"damaged", b"[]", b'{"characters": 5, "digest": 5}'])
def test_damaged_files_are_made_anew(text, cache, name, content):
    load(text)
    (file,) = cache.glob(f"*.{name}")
    file.write_bytes(content)
    assert not is_cached(load(text))
    assert is_cached(load(text)) and text_of(load(text)) == "abc" * 50


def test_a_flipped_bit_is_noticed(text, cache):
    """An id within the vocabulary that becomes another one: only the checksum can tell."""
    load(text)
    (file,) = cache.glob("*.npy")
    ids = np.load(file)
    ids[77] ^= 1
    np.save(file, ids)
    assert text_of(load(text)) == "abc" * 50


def test_other_characters_are_noticed(text, cache):
    load(text)
    (file,) = cache.glob("*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"characters": "abd"}))
    assert text_of(load(text)) == "abc" * 50


def test_a_cache_that_cannot_be_written_is_only_slower(text, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert text_of(load(text)) == "abc" * 50


def test_the_least_recently_used_are_removed_when_it_is_full(tmp_path, cache, monkeypatch):
    """Three corpora of which two fit: the first is used again before the third comes, so the second goes."""
    paths = [tmp_path / f"{name}.txt" for name in "abc"]
    for path in paths:
        path.write_text(path.stem + "xy" * 1000, encoding="utf-8")
    load(paths[0])
    size = next(cache.glob("*.npy")).stat().st_size
    monkeypatch.setattr(module, "LARGEST", 2 * size + 1)
    load(paths[1])
    for number, file in enumerate(sorted(cache.glob("*.npy"), key=lambda file: file.stat().st_mtime_ns)):
        os.utime(file, (1000 + number, 1000 + number))
    assert is_cached(load(paths[0]))
    load(paths[2])
    assert len(list(cache.glob("*.npy"))) == len(list(cache.glob("*.json"))) == 2
    assert [is_cached(load(path)) for path in (paths[0], paths[2], paths[1])] == [True, True, False]


def test_a_corpus_larger_than_the_cache_is_not_kept(text, cache, monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 100)
    assert text_of(load(text)) == text_of(load(text)) == "abc" * 50 and not list(cache.glob("*.npy"))


def test_the_files_of_a_killed_writer_are_removed(text, cache):
    cache.mkdir(parents=True)
    for name, age in ((".old.npy.1-x.part", 3600), (".new.npy.1-x.part", 1)):
        (cache / name).touch()
        os.utime(cache / name, (time.time() - age,) * 2)
    load(text)
    assert [file.name for file in cache.glob("*.part")] == [".new.npy.1-x.part"]
