"""A session in the terminal: lines are read and continued, commands begin with a slash."""

import difflib
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm.config.fields import fields
from lm.config.strict_yaml import read_yaml
from lm.files import UserError
from lm.sampling.decoder import Position
from lm.sampling.options import SETTABLE, GenerateOptions
from lm.sampling.session import Interrupts, Session

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
    elif name in SETTABLE:
        _set(session, name, value)
    else:
        names = [*SETTABLE, "stop", "reset", "save", "load", "help", "quit"]
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
    value: Any = read_yaml(text) if text else text
    fields(GenerateOptions)[name].check(value, "/")
    if name == "seed":
        session.reseed(value)
    elif name == "chars":
        session.chars = value or None
    else:
        session.options = replace(session.options, **{name: value})
