"""A session with one model: texts are read and continued; their state can be saved and loaded."""

import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lm.config.options import COPYING, ModelConfig
from lm.corpora.tokenizer import CharTokenizer
from lm.files import UserError
from lm.model import LanguageModel
from lm.runs.load import load_with_config
from lm.sampling import state
from lm.sampling.decoder import Decoder, Engine, Position, read, score
from lm.sampling.filters import SamplingOptions
from lm.sampling.options import GenerateOptions
from lm.sampling.packed import pack
from lm.sampling.text import Piece, start_ids, write

PIECE = 65_536
"""Characters of a scored text whose ids are in memory at a time."""


class Score(NamedTuple):
    """What `Session.score` has found of a text."""

    characters: int
    """that were scored"""
    bytes: int
    """of these characters in UTF-8"""
    total: float
    """sum of their log-probabilities"""
    unknown: int
    """characters of the text that the model has never seen"""


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Within this context Ctrl-C only makes the yielded function return true; a second Ctrl-C acts as usual."""
    interrupted = False

    def remember(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.getsignal(signal.SIGINT)
    if previous != signal.SIG_IGN:
        signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: interrupted
    finally:
        signal.signal(signal.SIGINT, previous)


@dataclass
class Session:
    """One or more texts that a model continues.

    Args:
        model, config: as they were loaded.
        engine: the model or a packed copy, which reads and writes.
        options: how texts are continued.
    """

    model: LanguageModel
    config: ModelConfig
    tokenizer: CharTokenizer
    engine: Engine
    options: GenerateOptions
    seed: int = 0
    positions: list[Position] = field(default_factory=list)
    """the end of each text; none before anything is read"""

    @classmethod
    def open(cls, path: Path, options: GenerateOptions) -> "Session":
        """Load a model, and a state if the options name one.

        Raises:
            UserError: they cannot be loaded, or the model writes no text.
        """
        model, tokenizer, config = load_with_config(path)
        if config.data.corpus == COPYING:
            raise UserError(f"{path} answers {COPYING}, it writes no text; its accuracy: char-lm evaluate {path}")
        session = cls(model, config.model, tokenizer, pack(model, options.weights), options)
        if options.load_state:
            session.load(Path(options.load_state))
        if options.seed is not None:
            session.reseed(options.seed)
        return session

    def read(self, text: str | None) -> None:
        """Read a text after each of the texts so far. None is the start of a line if there is none yet, else nothing.

        Raises:
            UserError: it has characters that the model has never seen.
        """
        if missing := self.tokenizer.missing(text or ""):
            raise UserError(f"the prompt has characters never seen: {' '.join(map(repr, missing))}")
        if text or not self.positions:
            ids = start_ids(self.tokenizer, text or "")
            self.positions = [read(self.engine, ids, position) for position in self.positions or (None,)]

    def check_samples(self) -> None:
        """Raises UserError: the options do not fit the number of texts."""
        n = len(self.positions)
        if n > 1 and self.options.chars == 0 and not self.options.json:
            raise UserError(f"the state holds {n} samples: --chars must then be above 0 without --json")
        if self.options.samples and n not in (1, self.options.samples):
            raise UserError(f"the state holds {n} samples: --samples cannot be {self.options.samples}")

    def write(self, interrupted: Callable[[], bool]) -> Iterator[list[Piece]]:
        """Continue every text, or a single one `options.samples` times; `positions` are then where they end."""
        options = self.options
        if options.samples and len(self.positions) == 1:
            self.positions *= options.samples
        decoder = Decoder(self.engine, self.positions, self.seed)
        sampling = SamplingOptions(options.temperature, options.top_k, options.top_p, options.min_p)
        arguments = options.chars or None, sampling, options.stop, options.json, interrupted
        for pieces in write(decoder, self.tokenizer, *arguments):
            for piece in pieces:
                if piece.position:
                    self.positions[piece.sample] = piece.position
            yield pieces

    def score(self, texts: Iterable[str]) -> Score:
        """Read a text in pieces."""
        if len(self.positions) > 1:
            raise UserError(f"--score needs a state of one sample, this one holds {len(self.positions)}")
        found = Score(0, 0, 0.0, 0)
        position = self.positions[0] if self.positions else None
        for text in texts:
            for start in range(0, len(text), PIECE):
                ids = self.tokenizer.encode(text[start : start + PIECE])
                logs, position = score(self.engine, ids, position)
                characters, size = self.tokenizer.count(ids[len(ids) - len(logs) :])
                unknown = int((ids == self.tokenizer.unknown).sum())
                new = characters, size, float(logs.sum()), unknown
                found = Score._make(a + b for a, b in zip(found, new, strict=True))
        self.positions = [position] if position else []
        return found

    def reseed(self, seed: int) -> None:
        """Start new streams of random numbers."""
        self.seed = seed
        self.positions = [position._replace(drawn=0) for position in self.positions]

    def keep_first(self) -> None:
        """Of several texts keep the first, and say so on stderr."""
        if len(self.positions) > 1:
            self.positions = self.positions[:1]
            print("the state holds several samples; this is the first", file=sys.stderr)

    def save(self, path: Path) -> None:
        """Save the positions of all texts; where there is none, of the start of a line."""
        self.read(None)
        state.save(path, self.positions, self.seed, self._fingerprint())

    def load(self, path: Path) -> None:
        """Load the positions and the seed of a state file."""
        self.positions, self.seed = state.load(path, self.model, self._fingerprint())

    def _fingerprint(self) -> str:
        return state.fingerprint(self.model, self.tokenizer.characters, self.config)
