"""Selective copying: repeat the data, leave out the noise (arXiv 2312.00752, section 4.1.1).

    D . . A . . . C . | | |   ->   D A C        data at random places among noise, then a mark for each answer

The places differ from problem to problem, so a model must select by content what it keeps in its state. Problems are
generated when they are needed; there is no corpus.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lm.config.options import DataConfig
from lm.corpora.batches import Piece
from lm.corpora.tokenizer import CharTokenizer
from lm.files import UserError

NOISE, DATA, MARK = ".", string.ascii_letters[26:] + string.ascii_letters[:26], "|"
"""The characters, in the order of their code points: noise has the first id, the mark the last."""
IGNORED = -100
"""Target of a position without an answer: what `torch.nn.functional.cross_entropy` ignores."""
HELD_OUT = 512
"""Number of validation problems, which are the same for every run."""
AT_ONCE = 16_384


@dataclass(frozen=True)
class Copying:
    """Problems of `context` positions, the last `tokens` of them marks, with `vocabulary` characters in all."""

    context: int
    tokens: int
    vocabulary: int

    @classmethod
    def from_config(cls, config: DataConfig) -> "Copying":
        """The problems of a configuration.

        Raises:
            UserError: the context is too short for them, or the vocabulary too small or too large.
        """
        tokens, vocabulary = config.copying.tokens, config.copying.vocabulary
        if not 4 <= vocabulary <= len(DATA) + 2:
            raise UserError(f"data.copying.vocabulary must be between 4 and {len(DATA) + 2}, not {vocabulary}")
        if config.context < 2 * tokens:
            raise UserError(
                f"data.context {config.context} is too short for data.copying.tokens {tokens}: "
                f"the data and as many marks take {2 * tokens}"
            )
        return cls(config.context, tokens, vocabulary)

    def __str__(self) -> str:
        return f"{self.tokens} characters to remember in {self.context - self.tokens}, {self.vocabulary} distinct"

    digest = ""
    """checksum of the text, which there is none of: the configuration defines the problems"""

    @property
    def tokenizer(self) -> CharTokenizer:
        """The noise, as many letters as the vocabulary has, and the mark."""
        return CharTokenizer(NOISE + DATA[: self.vocabulary - 2] + MARK)

    def batch(self, config: DataConfig, seed: int, step: int, rows: range) -> tuple[Piece, bool]:
        """These rows of a step's batch, each from the initial state; targets before the marks are IGNORED."""
        return self._problems([np.random.Philox(key=seed, counter=[0, 2, step, row]) for row in rows]), True

    def validation_pieces(self, context: int = 0, characters: int = 0) -> list[Sequence[Piece]]:
        """The held-out problems, about AT_ONCE characters at a time; the arguments are those for a text."""
        at_once = max(1, AT_ONCE // self.context)
        sources = [np.random.Philox(key=0, counter=[0, 3, 0, row]) for row in range(HELD_OUT)]
        return [[self._problems(sources[first : first + at_once]) for first in range(0, HELD_OUT, at_once)]]

    def bytes_per_character(self, characters: int = 0) -> float:
        """One; the argument is that for a text."""
        return 1.0

    def _problems(self, sources: list[np.random.Philox]) -> Piece:
        places = self.context - self.tokens
        x = np.zeros((len(sources), self.context), dtype=np.int64)
        y = np.full_like(x, IGNORED)
        x[:, places:] = self.vocabulary - 1
        for row, source in enumerate(sources):
            random = np.random.Generator(source)
            data = random.integers(1, self.vocabulary - 1, self.tokens)
            x[row, np.sort(random.choice(places, self.tokens, replace=False))] = data
            y[row, places:] = data
        return x, y
