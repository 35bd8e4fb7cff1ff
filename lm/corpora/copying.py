"""Selective copying: repeat the data, leave out the noise (arXiv 2312.00752, section 4.1.1).

    D . . A . . . C . | | |   ->   D A C        data at random places among noise, then a mark for each answer

The places differ from problem to problem, so a model must select by content what it keeps in its state. Problems are
generated when they are needed; there is no corpus.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    """Problems of `context` positions, the last `tokens` of them marks, with `vocabulary` characters in all.

    With `shortest`, each step of training cuts the rows of its batch into problems of a length drawn for that step, at
    least `shortest`; in the first `growth` steps the longest grows from there to `context`. A model learns from short
    problems what it needs for long ones, in a fraction of the time: both have the same number of answers. What is left
    of a row, less than one character for each of its problems, is not used.
    """

    context: int
    tokens: int
    vocabulary: int
    shortest: int = 0
    growth: int = 0

    @classmethod
    def from_config(cls, config: DataConfig) -> "Copying":
        """The problems of a configuration.

        Raises:
            UserError: the context is too short for them, or the vocabulary too small or too large.
        """
        tokens, vocabulary, shortest = config.copying.tokens, config.copying.vocabulary, config.copying.shortest
        if not 4 <= vocabulary <= len(DATA) + 2:
            raise UserError(f"data.copying.vocabulary must be between 4 and {len(DATA) + 2}, not {vocabulary}")
        if config.context < 2 * tokens:
            raise UserError(
                f"data.context {config.context} is too short for data.copying.tokens {tokens}: "
                f"the data and as many marks take {2 * tokens}"
            )
        if shortest and not 2 * tokens <= shortest <= config.context:
            raise UserError(
                f"data.copying.shortest must be between {2 * tokens}, twice data.copying.tokens, and data.context "
                f"{config.context}, not {shortest}"
            )
        return cls(config.context, tokens, vocabulary, shortest, config.copying.growth)

    def __str__(self) -> str:
        text = f"{self.tokens} characters to remember in {self.context - self.tokens}, {self.vocabulary} distinct"
        return f"{text}; from length {self.shortest} on" if self.shortest else text

    digest = ""
    """checksum of the text, which there is none of: the configuration defines the problems"""

    @property
    def tokenizer(self) -> CharTokenizer:
        """The noise, as many letters as the vocabulary has, and the mark."""
        return CharTokenizer(NOISE + DATA[: self.vocabulary - 2] + MARK)

    def batch(self, config: DataConfig, seed: int, step: int, rows: range) -> tuple[Piece, bool]:
        """These rows of a step's batch, each from the initial state; targets before the marks are IGNORED."""
        parts = self._parts(seed, step)
        problems = replace(self, context=self.context // parts)
        rows = range(parts * rows.start, parts * rows.stop)
        return problems._problems([np.random.Philox(key=seed, counter=[0, 2, step, row]) for row in rows]), True

    def validation_pieces(self, context: int = 0, characters: int = 0) -> list[Sequence[Piece]]:
        """The held-out problems, about AT_ONCE characters at a time; the arguments are those for a text."""
        at_once = max(1, AT_ONCE // self.context)
        sources = [np.random.Philox(key=0, counter=[0, 3, 0, row]) for row in range(HELD_OUT)]
        return [[self._problems(sources[first : first + at_once]) for first in range(0, HELD_OUT, at_once)]]

    def bytes_per_character(self, characters: int = 0) -> float:
        """One; the argument is that for a text."""
        return 1.0

    def _parts(self, seed: int, step: int) -> int:
        """The number of problems in each row of a step; its logarithm, and so that of their length, is uniform."""
        most = self.context // self.shortest if self.shortest else 1
        least = most ** max(0.0, 1 - step / self.growth) if self.growth else 1.0
        random = np.random.Generator(np.random.Philox(key=seed, counter=[0, 4, step, 0]))
        return int(least * ((most + 1) / least) ** random.random())

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
