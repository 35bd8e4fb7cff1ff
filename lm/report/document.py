"""What commands print is inserted into documents between marks, so that no figure is typed by hand.

    char-lm document FILE python -m tests.harness.fuzz --minutes 10

runs a command that has no --insert of its own. The mark is the command without `python -m` or `char-lm`, and without
`--`, which HTML does not allow in a comment: `tests.harness.fuzz minutes 10`.
"""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from lm.files import UserError, atomic_write, read_text

USAGE = "usage: char-lm document FILE COMMAND ..."
INTERPRETERS = {"python": [sys.executable], "char-lm": [sys.executable, "-m", "lm"]}
"""How the first word of a command is run: by the Python that runs this, whatever is on the PATH."""


def insert(place: str, mark: str, text: str, fence: str = "```") -> None:
    """Replace the text between the lines `<!-- MARK: begin -->` and `<!-- MARK: end -->` of a document.

    Args:
        place: the document, FILE, or FILE#MARK for another mark than `mark`.
        fence: what makes plain text of it; empty for text that is Markdown itself.

    Raises:
        UserError: it has no such lines, or cannot be read or written.
    """
    path, mark = _split(place, mark)
    before, after = halves(place, mark)
    if f"<!-- {mark}: " in text:
        raise UserError(f"--insert: the text for {path} has the mark <!-- {mark} itself")
    begin, end = (f"{fence}text\n", f"{fence}\n") if fence else ("\n", "\n")
    inner = f"{begin}{text.strip()}\n{end}"
    atomic_write(path, before + (inner.replace("\n", "\r\n") if before.endswith("\r\n") else inner) + after)


def halves(place: str, mark: str) -> tuple[str, str]:
    """The parts of a document before and after the text between its marks, the marks included.

    Raises:
        UserError: the document does not have exactly one pair of marks.
    """
    path, mark = _split(place, mark)
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    parts = re.split(rf"({re.escape(begin)}\r?\n|{re.escape(end)})", read_text(path))
    if [part.strip() for part in parts[1::2]] != [begin, end]:
        raise UserError(f"--insert: {path} needs one line {begin} and one {end} after it")
    return parts[0] + parts[1], parts[3] + parts[4]


@contextlib.contextmanager
def inserted(place: str | None, mark: str, command: str) -> Iterator[None]:
    """Insert what is printed meanwhile into a document as well, below the command. Without a place, do nothing."""
    if place is None:
        yield
        return
    halves(place, mark)  # a document without the marks is refused before anything is measured
    copy = Copy()
    with contextlib.redirect_stdout(copy):
        yield
    insert(place, mark, f"$ {command}\n{copy.getvalue()}")


def _split(place: str, mark: str) -> tuple[Path, str]:
    file, _, own = place.partition("#")
    return Path(file), own or mark


class Copy(io.StringIO):
    """A stream that keeps what it passes on to stdout."""

    def __init__(self) -> None:
        super().__init__()
        self.stdout = sys.stdout

    def write(self, text: str) -> int:
        """Keep a text and print it."""
        self.stdout.write(text)
        return super().write(text)

    def flush(self) -> None:
        """Flush stdout."""
        self.stdout.flush()


def main(words: list[str]) -> int:
    """Run a command and insert what it prints. Returns its exit code; one that fails leaves the document alone."""
    if words in (["-h"], ["--help"]):
        print(f"{USAGE}\n\n{__doc__}")
        return 0
    if len(words) < 2 or words[0].startswith("-"):
        raise UserError(USAGE)
    place, *command = words
    shown = shlex.join(command)
    mark = re.sub(r"^(python -m|char-lm) ", "", shown).replace("--", "")
    halves(place, mark)
    lines = []
    actual = [*INTERPRETERS.get(command[0], command[:1]), *command[1:]]
    with subprocess.Popen(actual, stdout=subprocess.PIPE, encoding="utf-8", errors="replace") as process:
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode == 0:
        insert(place, mark, f"$ {shown}\n{''.join(lines)}")
    return process.returncode
