"""Shared fixtures of the tests of corpora."""

import pytest

from lm.config.options import DataConfig
from lm.corpora.corpus import load_corpus


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "char-lm"


def load(path, context=8, **options):
    """The corpus of a path."""
    return load_corpus(DataConfig(corpus=str(path), context=context, **options))


def text_of(corpus):
    """The text that a corpus was made of."""
    return corpus.tokenizer.decode(corpus.ids)
