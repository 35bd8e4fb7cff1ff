"""A session with one model: text is read and written, the state kept, saved and loaded. generate.py is its front;
`interact` is a session in the terminal.
"""

import difflib
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lm import state
from lm.config import COPYING, SAMPLING, UserError
from lm.model import LanguageModel
from lm.run import load_with_config
from lm.sampling import Decoder, Engine, Options, Piece, Position, read, score, start_ids, write
from lm.tokenizer import CharTokenizer

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
    def open(cls, path: Path, given: Any) -> "Session":
        """Load a model, and the state if there is one, by the options of generate.py."""
        from lm.packed import pack

        model, tokenizer, config = load_with_config(path)
        if config.data.corpus == COPYING:
            raise UserError(f"{path} answers {COPYING}, it writes no text; its accuracy: python -m lm.evaluate {path}")
        session = cls(
            model,
            pack(model, given.weights),
            tokenizer,
            lambda: state.fingerprint(model, tokenizer.characters, config.model),
            Options(given.temperature, given.top_k, given.top_p, given.min_p),
            given.chars or None,
            given.stop or [],
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


HELP = r"""Type some text: it is read, without the end of the line, and then continued. Nothing typed: it goes on.
  \n in the text is the end of a line; // at its start a slash
  /temperature X  /top_k N  /top_p X  /min_p X     how characters are chosen
  /chars N        how many to write; 0: until Ctrl-C
  /stop TEXT      end before this text; alone: before none
  /seed N         new randomness
  /reset          forget all text
  /save FILE      /load FILE      the state
  /help           /quit, or Ctrl-D       Ctrl-C ends the current continuation"""


def interact(session: Session, prompt: str) -> int:
    """Read lines from stdin and write how they go on, until there are no more. Text alone goes to stdout."""
    session.keep_first()
    first = list(session.positions)
    if prompt:
        session.read(prompt)
        _continue(session, prompt)
    while (line := _line()) is not None and line.strip() != "/quit":
        try:
            if line.startswith("/") and not line.startswith("//"):
                _command(session, first, line[1:])
            else:
                session.read(line.removeprefix("/").replace("\\n", "\n") or None)
                _continue(session)
        except UserError as error:
            print(error, file=sys.stderr)
    return 0


def _line() -> str | None:
    """The next line that is typed, or None at the end. Ctrl-C drops what was typed so far."""
    terminal = sys.stdin.isatty()
    while True:
        try:
            if terminal:
                import readline  # noqa: F401  (input() then edits and remembers lines)

                return input("> ")
            line = sys.stdin.readline()
            return line.rstrip("\n") if line else None
        except EOFError:
            print(file=sys.stderr)
            return None
        except KeyboardInterrupt:
            if not terminal:
                raise
            print(file=sys.stderr)


def _continue(session: Session, prompt: str = "") -> None:
    """Write on, until the characters are all there or Ctrl-C."""
    print(prompt, end="")
    with Interrupts() as interrupted:
        for (piece,) in session.write(interrupted=interrupted):
            print(piece.text, end="", flush=True)
    print(flush=True)


def _command(session: Session, first: list[Position], line: str) -> None:
    """Obey a line such as `temperature 0.5`. Raises UserError."""
    name, _, value = line.partition(" ")
    value = value.strip()
    if name == "help":
        print(HELP, file=sys.stderr)
    elif name == "reset":
        session.positions = list(first)
    elif name in ("save", "load"):
        _file_command(session, name, value)
    elif name == "stop":
        session.stops = [value.replace("\\n", "\n")] if value else []
    elif name in SAMPLING:
        _set(session, name, value)
    else:
        names = [*SAMPLING, "stop", "reset", "save", "load", "help", "quit"]
        near = difflib.get_close_matches(name, names, 1)
        raise UserError(f"unknown command /{name}; " + (f"did you mean /{near[0]}?" if near else "/help lists them"))


def _file_command(session: Session, name: str, value: str) -> None:
    try:
        (word,) = shlex.split(value)
        path = Path(word).expanduser()
    except (ValueError, RuntimeError):  # a quote left open, no word or several; no such user
        raise UserError(f"/{name} needs the name of a file, not {value!r}") from None
    if "\0" in word:
        raise UserError(f"/{name} needs the name of a file, not {value!r}")
    if name == "save":
        session.read(None)
        session.save(path)
    else:
        session.load(path)
        session.keep_first()
    print(f"/{name}: done", file=sys.stderr)


def _set(session: Session, name: str, text: str) -> None:
    kind, holds, meaning = SAMPLING[name]
    try:
        value = kind(text)
    except ValueError:
        raise UserError(f"/{name} must be a {'whole ' if kind is int else ''}number, not {text!r}") from None
    if not holds(value):
        raise UserError(f"/{name} must be {meaning}, not {text}")
    if name == "seed":
        session.reseed(value)
    elif name == "chars":
        session.chars = value or None
    else:
        session.options = replace(session.options, **{name: value})
