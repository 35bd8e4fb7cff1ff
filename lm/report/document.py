"""What commands print goes into documents between marks, so that no figure is typed by hand.

    char-lm document FILE python -m tests.harness.fuzz --minutes 10

runs a command that has no --insert of its own. The marks are named as the command is, without what HTML has no place
for in a comment: `tests.harness.fuzz minutes 10`.
"""

import contextlib
import io
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from lm.files import UserError, atomic_write, read_text


def insert(path: Path, mark: str, text: str, fence: str = "```") -> None:
    """Replace what stands between the lines `<!-- MARK: begin -->` and `<!-- MARK: end -->` of a document.

    Args:
        fence: what makes plain text of it; empty for text that is Markdown itself.

    Raises:
        UserError: it has no such lines, or cannot be read or written.
    """
    before, after = halves(path, mark)
    if f"<!-- {mark}: " in text:
        raise UserError(f"--insert: the text for {path} has the mark <!-- {mark} itself")
    begin, end = (f"{fence}text\n", f"{fence}\n") if fence else ("\n", "\n")
    atomic_write(path, f"{before}{begin}{text.strip()}\n{end}{after}")


def halves(path: Path, mark: str) -> tuple[str, str]:
    """What stands before and after, the marks with it."""
    begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->"
    try:
        before, rest = read_text(path).split(begin)
        _, after = rest.split(end)
        return before + begin, end + after
    except ValueError:
        raise UserError(f"--insert: {path} needs one line {begin.strip()} and one {end} after it") from None


@contextlib.contextmanager
def inserted(place: str | None, mark: str, command: str) -> Iterator[None]:
    """What is printed meanwhile goes to a document as well, under the command that printed it.

    Args:
        place: the document's path, perhaps with another mark: FILE#MARK; None for no document.
    """
    if place is None:
        yield
        return
    path, mark = split_place(place, mark)
    halves(path, mark)  # a document without the marks is found out before anything is measured
    copy = Copy()
    with contextlib.redirect_stdout(copy):
        yield
    insert(path, mark, f"$ {command}\n{copy.getvalue()}")


def split_place(place: str, mark: str) -> tuple[Path, str]:
    """FILE or FILE#MARK as a path and a mark, `mark` by default."""
    file, _, own = place.partition("#")
    return Path(file), own or mark


class Copy(io.StringIO):
    """Passes on to stdout what it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.stdout = sys.stdout

    def write(self, text: str) -> int:
        self.stdout.write(text)
        return super().write(text)

    def flush(self) -> None:
        self.stdout.flush()


def main(words: list[str]) -> int:
    """Run a command and insert what it prints. Returns its exit code; one that fails leaves the document alone."""
    if len(words) < 2 or words[0].startswith("-"):
        raise UserError("usage: char-lm document FILE COMMAND ...")
    path, command = Path(words[0]), words[1:]
    shown = shlex.join(command)
    mark = shown.removeprefix("python -m ").replace("--", "")
    halves(path, mark)
    lines = []
    actual = [sys.executable, *command[1:]] if command[0] == "python" else command
    with subprocess.Popen(actual, stdout=subprocess.PIPE, encoding="utf-8", errors="replace") as process:
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode == 0:
        insert(path, mark, f"$ {shown}\n{''.join(lines)}")
    return process.returncode
