"""A corpus: one flat array of character ids, split 90/10 by position."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lm.config.options import COPYING, DataConfig
from lm.corpora.cache import cached, keep
from lm.corpora.copying import Copying
from lm.corpora.sources import _read, find_files
from lm.corpora.tokenizer import CharTokenizer
from lm.files import UserError


@dataclass(frozen=True)
class Corpus:
    """A text as ids (n,), uint16 or uint32, memory-mapped from the cache when there is one."""

    ids: np.ndarray
    tokenizer: CharTokenizer

    def __str__(self) -> str:
        return f"{len(self.ids):,} characters, {len(self.tokenizer) - 1} distinct"

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the text as ids and what they stand for (a second for 10^9 characters)."""
        digest = hashlib.sha256(self.tokenizer.characters.encode())
        digest.update(np.ascontiguousarray(self.ids).data)
        return digest.hexdigest()

    @property
    def train(self) -> np.ndarray:
        """The first 90 % of the characters."""
        return self.ids[: int(0.9 * len(self.ids))]

    @property
    def validation(self) -> np.ndarray:
        """The last 10 %."""
        return self.ids[int(0.9 * len(self.ids)) :]


def load(config: DataConfig) -> Corpus | Copying:
    """What `data.corpus` names: a corpus, or the task selective_copying."""
    return Copying.of(config) if config.corpus == COPYING else load_corpus(config)


def load_corpus(config: DataConfig) -> Corpus:
    """The corpus that `data.corpus` names, encoded; from the cache if it was read before and has not changed.

    Raises:
        UserError: there is no such corpus, or it cannot be read, or it is too short for `data.context`.
    """
    files = find_files(config)
    known = cached(files, config) if files else None
    corpus = Corpus(*known) if known else _encode(config, files)
    shortest = min(len(corpus.train), len(corpus.validation))
    if shortest <= config.context:
        raise UserError(
            f"data.corpus {config.corpus}: {len(corpus.ids):,} characters are too few for data.context "
            f"{config.context}: its validation tenth has {len(corpus.validation):,} and needs {config.context + 1:,}"
        )
    if len(corpus.tokenizer) < 3:
        raise UserError(f"data.corpus {config.corpus}: it repeats a single character, there is nothing to learn")
    return corpus


def _encode(config: DataConfig, files: list[Path]) -> Corpus:
    text = "".join(_read(config, files))
    if not text:
        raise UserError(f"data.corpus {config.corpus}: it is empty")
    tokenizer = CharTokenizer(_distinct(text))
    corpus = Corpus(tokenizer.encode(text), tokenizer)
    if files:
        keep(corpus.ids, tokenizer, files, config)
    return corpus


def _distinct(text: str) -> str:
    """The characters of a text, a megabyte at a time: the set of a whole one would visit it ten times slower."""
    return "".join(set().union(*(set(text[i : i + 2**20]) for i in range(0, len(text), 2**20))))
