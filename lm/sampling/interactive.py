"""An interactive session: each line is read and continued; lines with a slash are commands."""

import shlex
import sys
from pathlib import Path

from lm.config.fields import fields, nearest
from lm.config.strict_yaml import read_yaml
from lm.files import UserError
from lm.sampling.decoder import Position
from lm.sampling.options import GenerateOptions
from lm.sampling.session import Session, interrupts
from lm.sampling.writers import Output

HELP = r"""Type a text: it is read, without its line end, and continued. An empty line continues the text so far.
  \n in a text is a line end; // at its start is a slash
  /temperature X  /top_k N  /top_p X  /min_p X     how characters are chosen
  /chars N        characters to write; 0: until Ctrl-C
  /stop TEXT      end before this text; without a text: never
  /seed N         start new random numbers
  /reset          forget all text
  /save FILE      save the state            /load FILE      continue from a saved state
  /help           /quit, or Ctrl-D          Ctrl-C ends the current continuation"""
SETTABLE = ("temperature", "top_k", "top_p", "min_p", "chars", "seed")
"""Options of `char-lm generate` that are also commands."""


def interact(session: Session, prompt: str, output: Output) -> None:
    """Read lines from stdin and continue them, until there are no more. Only text goes to the output."""
    session.keep_first()
    first = list(session.positions)
    if prompt:
        session.read(prompt)
        output.write(prompt)
        _continue(session, output)
    while not output.problem and (line := _line()) is not None and line.strip() != "/quit":
        try:
            if line.startswith("/") and not line.startswith("//"):
                _command(session, first, line[1:])
            else:
                session.read(line.removeprefix("/").replace("\\n", "\n") or None)
                _continue(session, output)
        except UserError as error:
            print(error, file=sys.stderr)


def _line() -> str | None:
    """The next line that is typed, or None at the end. Ctrl-C drops what was typed so far."""
    if terminal := sys.stdin.isatty():
        import readline  # noqa: F401  (input() then edits and remembers lines)
    while True:
        try:
            return input("> " if terminal else "")
        except EOFError:
            print(end="\n" if terminal else "", file=sys.stderr)
            return None
        except KeyboardInterrupt:
            if not terminal:
                raise
            print(file=sys.stderr)


def _continue(session: Session, output: Output) -> None:
    """Write a continuation until it is long enough or Ctrl-C ends it."""
    with interrupts() as interrupted:
        for (piece,) in session.write(lambda: interrupted() or bool(output.problem)):
            output.write(piece.text)
    output.write("\n", flush=True)


def _command(session: Session, first: list[Position], line: str) -> None:
    """Run a command such as `temperature 0.5`. Raises UserError."""
    name, _, value = line.partition(" ")
    value = value.strip()
    if name == "help":
        print(HELP, file=sys.stderr)
    elif name == "reset":
        session.positions = list(first)
    elif name in ("save", "load"):
        _file_command(session, name, value)
    elif name == "stop":
        session.options.stop = [value.replace("\\n", "\n")] if value else []
    elif name in SETTABLE:
        _set(session, name, value)
    else:
        names = [*SETTABLE, "stop", "reset", "save", "load", "help", "quit"]
        hint = nearest(f"/{name}", (f"/{known}" for known in names))
        raise UserError(f"unknown command /{name}" + (hint or "; /help lists them"))


def _file_command(session: Session, name: str, value: str) -> None:
    try:
        (word,) = shlex.split(value)
        if "\0" in word:
            raise ValueError
        path = Path(word).expanduser()
    except (ValueError, RuntimeError):  # a quote left open, no word or several; no such user
        raise UserError(f"/{name} needs the name of a file, not {value!r}") from None
    if name == "save":
        session.save(path)
    else:
        session.load(path)
        session.keep_first()
    print(f"/{name}: done", file=sys.stderr)


def _set(session: Session, name: str, text: str) -> None:
    value = read_yaml(text) if text else text
    fields(GenerateOptions)[name].check(value, "/")
    if name == "seed":
        session.reseed(value or 0)
    else:
        setattr(session.options, name, value)
