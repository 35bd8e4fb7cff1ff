"""Selective copying: to remember what matters among what does not (arXiv 2312.00752, section 4.1.1).

    D . . A . . . C . | | |   ->   D A C        data at random places among noise, then a mark for each answer

The places differ from problem to problem, so that a model must look at what it reads to know what to keep. Problems are
generated as they are needed; there is no corpus.
"""

import string
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lm.config.options import DataConfig
from lm.corpora.batches import Piece
from lm.corpora.tokenizer import CharTokenizer
from lm.files import UserError

NOISE, DATA, MARK = ".", string.ascii_letters[26:] + string.ascii_letters[:26], "|"
"""The characters, in the order of their code points: noise has the first id, the mark the last."""


IGNORED = -100
"""The target where nothing is asked for, as `torch.nn.functional.cross_entropy` has it."""


HELD_OUT = 512
"""Problems of a validation: the same for every run."""


@dataclass(frozen=True)
class Copying:
    """Problems of `context` positions, the last `tokens` of them marks, with `vocabulary` characters in all."""

    context: int
    tokens: int
    vocabulary: int

    @classmethod
    def of(cls, config: DataConfig) -> "Copying":
        """The problems that a configuration asks for.

        Raises:
            UserError: there is no such problem.
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

    @property
    def digest(self) -> str:
        """Nothing: the configuration says all there is to say of it."""
        return ""

    @property
    def tokenizer(self) -> CharTokenizer:
        return CharTokenizer(NOISE + DATA[: self.vocabulary - 2] + MARK)

    def batch(self, seed: int, step: int, rows: range) -> Piece:
        """These rows of a step's batch. The targets before the marks are IGNORED."""
        return self._problems([np.random.Philox(key=seed, counter=[0, 2, step, row]) for row in rows])

    def validation(self, characters: int = 16_384) -> Iterator[Piece]:
        """The held-out problems, about so many characters at a time."""
        at_once = max(1, characters // self.context)
        for first in range(0, HELD_OUT, at_once):
            rows = range(first, min(first + at_once, HELD_OUT))
            yield self._problems([np.random.Philox(key=0, counter=[0, 3, 0, row]) for row in rows])

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
