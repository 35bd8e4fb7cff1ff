"""Files: reading with a limit of size, atomic writing, locks; and `UserError`, the error that users see as one line."""

import importlib
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import IO, Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that break a line, control a terminal, change the direction of text or cannot be written as UTF-8."""
SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Halves of characters, which cannot be written as UTF-8."""
DATA = Path(__file__).with_name("data")
if not DATA.is_dir():
    DATA = Path(__file__).parents[1] / "data"
"""The folder of the embedded corpora and the pretrained model: lm/data in a wheel, data in a checkout."""


def printable(text: str) -> str:
    """The text with U+FFFD in place of control characters and lone surrogates, so that it cannot control a terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


class UserError(Exception):
    """A mistake of the user, shown as one line on stderr with exit code 2 and without a traceback.

    Its text is always one printable line of bounded length, since it may quote files from strangers.
    """

    def __str__(self) -> str:
        text = printable(re.sub(r"\s*[\r\n]\s*", " ", super().__str__()))
        return text if len(text) <= 600 else f"{text[:400]} ... {text[-150:]}"


def import_optional(module: str, option: str) -> ModuleType:
    """Import a module that needs a package which is not installed with this program, for an option.

    Raises:
        UserError: the package is missing; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or module).partition(".")[0]
        raise UserError(f"{option} needs the package {package}: pip install {package}") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or torch means that memory is short."""
    named = "OutOfMemoryError" in type(error).__name__ or "allocate memory" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and named)


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """The content of a regular file.

    Args:
        path: the file.
        most: largest size in bytes.

    Raises:
        UserError: it cannot be read, is larger, or is not a regular file: reading a pipe or a device may never end.
    """
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise UserError(f"{path}: this is a folder; a file is expected")
        if not stat.S_ISREG(info.st_mode):
            raise UserError(f"{path}: not a plain file (a pipe, a device or a socket); copy its content into one")
        if most is not None and info.st_size > most:
            raise UserError(f"{path}: {info.st_size:,} bytes; such a file has at most {most:,}")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def read_text(path: Path, most: int | None = None) -> str:
    """The content of a UTF-8 file: line ends are kept, a byte order mark at the start is dropped.

    Raises:
        UserError: as `read_bytes`, or it is not UTF-8 text; names the position of the first wrong byte.
    """
    return as_text(read_bytes(path, most), path)


def as_text(raw: bytes, path: Path) -> str:
    """Decode the content of the file `path`; see `read_text`."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path}: this is UTF-16 text; convert it first: iconv -f UTF-16 -t UTF-8")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = f"byte 0x{raw[error.start]:02x} at position {error.start}"
        raise UserError(f"{path}: not UTF-8 text ({bad}: {error.reason}); convert it first with iconv") from None
    if "\0" in text:
        raise UserError(f"{path}: not text (a NUL character at position {text.index(chr(0))})")
    return text.removeprefix("\ufeff")


def shorten(value: Any) -> str:
    """A value in a few words, for error messages."""
    if isinstance(value, dict | list):
        return "a section" if isinstance(value, dict) else f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a number of more than 18 digits"
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the system while a file is written into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def atomic_open(path: Path, previous: str | None = None) -> Iterator[IO[bytes]]:
    """Atomic write: open a temporary file that replaces `path` when the context ends.

    At every moment, also after a power loss, `path` is the complete old or the complete new file. Each of several
    writers at the same time has a temporary file of its own; the last one to end wins.

    Args:
        path: the file to replace.
        previous: a name in the same folder under which the old file is kept.

    Raises:
        UserError: it cannot be written. As with any other error, `path` is then unchanged.
    """
    if path.exists() and not path.is_file():  # a device such as /dev/null is written to, not replaced
        with writing(path), path.open("wb") as device:
            yield device
        return
    part = new_part(path)
    try:
        with writing(path):
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                shutil.copymode(path, part)
            if previous and path.exists():
                alias(path, previous)
            os.replace(part, path)
            _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def atomic_write(path: Path, data: str | bytes) -> None:
    """Replace the content of a file by an atomic write; text is written as UTF-8."""
    with atomic_open(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def new_part(path: Path) -> Path:
    """The name of a temporary file for `path` that no other writer uses."""
    return path.with_name(f".{path.name[:20]}.{os.getpid()}-{secrets.token_hex(4)}.part")


def alias(path: Path, name: str) -> None:
    """Give a file a second name in its folder, atomically: a hard link, or a copy where there are no links."""
    target, part = path.with_name(name), new_part(path.with_name(name))
    with writing(target):
        if target.exists() and target.samefile(path):
            return
        try:
            os.link(path, part)
            os.replace(part, target)
        except OSError:
            with path.open("rb") as old, atomic_open(target) as new:
                shutil.copyfileobj(old, new)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every system can sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def check_output(path: str) -> None:
    """Check that a file can be written, before any work is done for it; `-` stands for standard output.

    Raises:
        UserError: names the path and the reason.
    """
    if path == "-":
        return
    if not path or CONTROL.search(path):
        raise UserError(f"cannot write {path!r}: this is not the name of a file")
    target = Path(path)
    with writing(target):
        if target.is_file() or target.is_dir():
            target.open("ab").close()
        elif not target.exists():
            part = new_part(target)
            part.touch(exist_ok=False)
            part.unlink()


def acquire_lock(path: Path) -> IO[str]:
    """Lock a file until the returned file is closed or this process ends.

    Where the system or the file system has no locks, this always succeeds.

    Raises:
        BlockingIOError: another process has the lock; the error's text names that process.
        OSError: the file cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    file = os.fdopen(os.open(path, flags, 0o644), "r+")
    if not _flock(file.fileno(), attempts=20):
        owner = file.read(100).strip()
        file.close()
        raise BlockingIOError(owner)
    file.truncate(0)
    file.write(f"process {os.getpid()} of {platform.node()}\n")
    file.flush()
    return file


def _flock(descriptor: int, attempts: int) -> bool:
    """Try to lock a file, several times because `is_abandoned` may have the lock for a moment. Returns the success."""
    for _ in range(attempts if fcntl else 0):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.02)
        except OSError:  # a file system without locks
            return True
    return fcntl is None


def is_abandoned(path: Path) -> bool:
    """Whether a lock file exists that no process has locked."""
    with suppress(OSError):
        if fcntl and path.is_file():
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return True
    return False


def remove_leftovers(folder: Path, seconds: float = 600) -> None:
    """Remove the `.part` files of writers that were killed: those that nobody has written to for so long."""
    for part in folder.glob("*.part"):
        with suppress(OSError):  # another process may rename or remove it at this moment
            if time.time() - part.stat().st_mtime > seconds:
                part.unlink()


def cache_folder() -> Path:
    """Where compiled kernels and encoded corpora are kept between runs; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "char-lm")
