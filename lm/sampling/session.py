"""A session with one model: text is read and written, the state kept, saved and loaded."""

import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm.config.options import COPYING
from lm.corpora.tokenizer import CharTokenizer
from lm.files import UserError
from lm.model import LanguageModel
from lm.runs.load import load_with_config
from lm.sampling import state
from lm.sampling.decoder import Decoder, Engine, Position, read, score
from lm.sampling.filters import Options
from lm.sampling.options import GenerateOptions
from lm.sampling.text import Piece, start_ids, write

PIECE = 65_536
"""Characters of a scored text whose ids are in memory at a time."""


class Interrupts:
    """Within it, Ctrl-C asks to end after the character that is being written; a second one acts at once."""

    def __enter__(self) -> Callable[[], bool]:
        self.asked = False
        self.previous = signal.getsignal(signal.SIGINT)
        if self.previous != signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._ask)
        return lambda: self.asked

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.previous)


@dataclass
class Session:
    """One or more texts in the making, and how they are to go on.

    Args:
        model: the weights as they were loaded.
        engine: what reads and writes with them.
    """

    model: LanguageModel
    engine: Engine
    tokenizer: CharTokenizer
    model_hash: Callable[[], str]
    options: Options = field(default_factory=Options)
    chars: int | None = 1000
    stops: list[str] = field(default_factory=list)
    seed: int = 0
    positions: list[Position] = field(default_factory=list)
    """of each text; none before anything is read"""

    @classmethod
    def open(cls, path: Path, given: GenerateOptions) -> "Session":
        """Load a model, and the state if there is one, by the options of `char-lm generate`."""
        from lm.sampling.packed import pack

        model, tokenizer, config = load_with_config(path)
        if config.data.corpus == COPYING:
            raise UserError(f"{path} answers {COPYING}, it writes no text; its accuracy: char-lm evaluate {path}")
        session = cls(
            model,
            pack(model, given.weights),
            tokenizer,
            lambda: state.fingerprint(model, tokenizer.characters, config.model),
            Options(given.temperature, given.top_k, given.top_p, given.min_p),
            given.chars or None,
            given.stop,
        )
        if given.load_state:
            session.load(Path(given.load_state))
        if given.seed is not None:
            session.reseed(given.seed)
        return session

    def read(self, text: str | None) -> None:
        """Let every text go on with this one. None is the start of a line if there is no text yet, else nothing.

        Raises:
            UserError: it has characters that the model has never seen.
        """
        if missing := self.tokenizer.missing(text or ""):
            raise UserError(f"the prompt has characters never seen: {' '.join(map(repr, missing))}")
        if text or not self.positions:
            ids = start_ids(self.tokenizer, text or "")
            self.positions = [read(self.engine, ids, position) for position in self.positions or (None,)]

    def write(
        self,
        samples: int | None = None,
        log_probabilities: bool = False,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Iterator[list[Piece]]:
        """Continue every text, or one text `samples` times; they stay where they end."""
        if samples and len(self.positions) == 1:
            self.positions *= samples
        decoder = Decoder(self.engine, self.positions, self.seed)
        arguments = self.chars, self.options, self.stops, log_probabilities, interrupted
        for pieces in write(decoder, self.tokenizer, *arguments):
            for piece in pieces:
                if piece.position:
                    self.positions[piece.sample] = piece.position
            yield pieces

    def score(self, texts: Iterable[str]) -> tuple[int, float, int]:
        """Read a text in pieces: characters scored, the sum of their log-probabilities, how many were unknown."""
        if len(self.positions) > 1:
            raise UserError(f"--score needs a state of one sample, this one holds {len(self.positions)}")
        count, total, unknown = 0, 0.0, 0
        position = self.positions[0] if self.positions else None
        for text in texts:
            for start in range(0, len(text), PIECE):
                ids = self.tokenizer.encode(text[start : start + PIECE])
                logs, position = score(self.engine, ids, position)
                count, total = count + len(logs), total + float(logs.sum())
                unknown += int((ids == self.tokenizer.unknown).sum())
        self.positions = [position] if position else []
        return count, total, unknown

    def reseed(self, seed: int) -> None:
        """Begin new streams of randomness."""
        self.seed = seed
        self.positions = [position._replace(drawn=0) for position in self.positions]

    def save(self, path: Path) -> None:
        """The positions of all texts into a state file."""
        state.save(path, self.positions, self.seed, self.model_hash())

    def keep_first(self) -> None:
        """Of several texts go on with one, and say so."""
        if len(self.positions) > 1:
            self.positions = self.positions[:1]
            print("the state holds several samples; this is the first", file=sys.stderr)

    def load(self, path: Path) -> None:
        self.positions, self.seed = state.load(path, self.model, self.model_hash())
