"""A corpus: one flat array of ids, split 90/10 by position, as characters are counted."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lm.config.options import COPYING, DataConfig
from lm.corpora import cache
from lm.corpora.batches import Piece, Windows, random_windows, shuffled_windows, spread, stream, streams
from lm.corpora.copying import Copying
from lm.corpora.sources import find_files, read_texts
from lm.corpora.tokenizer import CharTokenizer
from lm.files import UserError


@dataclass(frozen=True)
class Corpus:
    """A text as ids (n,), uint16 or uint32, memory-mapped."""

    ids: np.ndarray
    tokenizer: CharTokenizer
    digest: str
    """checksum of the text; see `lm.corpora.encoder.Encoded`"""
    border: int
    """where the validation split begins"""
    teacher: np.ndarray | None = None
    """with distill.teachers, their probabilities of the next id after each id of `train`: (n, V)"""

    def __str__(self) -> str:
        return f"{len(self.ids):,} {self.tokenizer.unit}s, {len(self.tokenizer) - 1} distinct"

    @property
    def train(self) -> np.ndarray:
        """The first 90 % of the characters."""
        return self.ids[: self.border]

    @property
    def validation(self) -> np.ndarray:
        """The last 10 %."""
        return self.ids[self.border :]

    def batch(self, config: DataConfig, seed: int, step: int, rows: range) -> tuple[Piece, bool]:
        """These rows of a step's batch, and whether they start from the initial state instead of a carried one."""
        if config.sampling == "streams":
            return streams(self.train, config.context, seed, step, rows, config.batch_size)
        if config.sampling == "windows":
            return random_windows(self.train, config.context, seed, step, rows), True
        return shuffled_windows(self.train, config.context, seed, step, rows, config.batch_size), True

    def teacher_batch(self, config: DataConfig, seed: int, step: int, rows: range) -> np.ndarray | None:
        """The teachers' probabilities (B, T, V) of the targets of `batch`; None without teachers."""
        if self.teacher is None:
            return None
        (positions, _), _ = self._numbered.batch(config, seed, step, rows)
        return self.teacher[positions]

    @functools.cached_property
    def _numbered(self) -> "Corpus":
        """The same with positions for ids, so that a batch of it says where the text's batch is from."""
        return replace(self, ids=np.arange(len(self.ids)))

    def validation_pieces(self, context: int, characters: int) -> list[Sequence[Piece]]:
        """The validation split twice: in windows, each to be read from the initial state, and as one sequence.

        Args:
            characters: of a longer split, the same stretches each time, which are read as one text; see `spread`.
        """
        ids = spread(self.validation, characters)
        return [Windows(ids, context), stream(ids)]

    def bytes_per_character(self, characters: int) -> float:
        """Bytes of UTF-8 in a character, on average over what `validation_pieces` have to be predicted."""
        found, size = self.tokenizer.count(spread(self.validation, characters)[1:])
        return size / max(1, found)


def load(config: DataConfig) -> Corpus | Copying:
    """What `data.corpus` names, to train on: a corpus, or the task selective_copying.

    Raises:
        UserError: as `load_corpus`, or the text is too short for data.sampling streams.
    """
    if config.corpus == COPYING:
        return Copying.from_config(config)
    corpus = load_corpus(config)
    length = len(corpus.train) // config.batch_size
    if config.sampling == "streams" and length <= config.context:
        raise UserError(
            f"data.sampling streams: data.batch_size {config.batch_size} cuts the {len(corpus.train):,} "
            f"{corpus.tokenizer.unit}s of training into streams of {length:,}, and data.context {config.context} needs "
            f"{config.context + 1:,}: lower one of the two"
        )
    return corpus


def load_corpus(config: DataConfig) -> Corpus:
    """The corpus that `data.corpus` names, encoded; from the cache if it was read before and has not changed.

    Raises:
        UserError: there is no such corpus, or it cannot be read, or it is too short for `data.context`.
    """
    files = find_files(config)
    cached = cache.read(files, config) if files else None
    corpus = Corpus(*(cached or cache.write(lambda: read_texts(config, files), files, config)))
    if not len(corpus.ids):
        raise UserError(f"data.corpus {config.corpus}: it is empty")
    if config.tuning:
        corpus = replace(corpus, ids=corpus.train, border=corpus.tokenizer.place(corpus.train, cache.TRAINING))
    shortest = min(len(corpus.train), len(corpus.validation))
    if shortest <= config.context:
        raise UserError(
            f"data.corpus {config.corpus}: {len(corpus.ids):,} {corpus.tokenizer.unit}s are too few for data.context "
            f"{config.context}: its validation tenth has {len(corpus.validation):,} and needs {config.context + 1:,}"
        )
    if len(corpus.tokenizer) < 3:
        raise UserError(f"data.corpus {config.corpus}: it repeats a single character, there is nothing to learn")
    return corpus
