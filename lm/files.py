"""Files: bounded reading of what others wrote, atomic writing, locks; and `UserError`, the one kind of error."""

import errno
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
from typing import IO, Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What could break a line, steer a terminal, turn the writing round or not be written as UTF-8."""


DATA = Path(__file__).with_name("data")
if not DATA.is_dir():
    DATA = Path(__file__).parents[1] / "data"
"""The embedded corpora and the pretrained model: in the package of a wheel, beside it in a checkout."""
SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Halves of characters: what cannot be written as UTF-8."""


def printable(text: str) -> str:
    """Text that cannot do anything to a terminal: no control characters, no lone surrogates."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


class UserError(Exception):
    """A mistake of the user's: shown as one line on stderr, exit code 2, no traceback.

    Its text is one printable line of bounded length, whatever it quotes: what it names may come from a stranger's file.
    """

    def __str__(self) -> str:
        text = printable(re.sub(r"\s*[\r\n]\s*", " ", super().__str__()))
        return text if len(text) <= 600 else f"{text[:400]} ... {text[-150:]}"


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """A plain file of at most so many bytes.

    Raises:
        UserError: it cannot be read, is larger, or is no plain file: a pipe could wait, and a device go on, for ever.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise UserError(f"{path}: not a plain file (a pipe, a device or a socket); copy its content into one")
            if most is not None and info.st_size > most:
                raise UserError(f"{path}: {info.st_size:,} bytes; such a file has at most {most:,}")
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _open_without_waiting(path: str, flags: int) -> int:
    """For `open`: a pipe would wait for a writer; a folder is refused here, since `open` itself would leak it."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path}: this is a folder; a file is expected")
    return descriptor


def read_text(path: Path, most: int | None = None) -> str:
    """A UTF-8 file to the character: line ends stay as they are, a leading byte order mark goes.

    Raises:
        UserError: as `read_bytes`, or it is not UTF-8 text; names the position of the first bad byte.
    """
    return as_text(read_bytes(path, most), path)


def as_text(raw: bytes, path: Path) -> str:
    """The content of a file as text; see `read_text`."""
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
    """A value as a few words, whatever it holds."""
    if isinstance(value, dict | list):
        return "a section" if isinstance(value, dict) else f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a number of more than 18 digits"
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system has against writing there, as one line.

    Raises:
        UserError: the disk is full, the folder read-only, ...
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def atomic_open(path: Path, previous: str | None = None) -> Iterator[IO[bytes]]:
    """A file to write in that then replaces `path`. At any moment, a power loss included, `path` is the old file or the
    new one, complete; several writers at once do not meet.

    Args:
        path: what it will be.
        previous: a name in the same folder under which the old file stays.

    Raises:
        UserError: it cannot be written; `path` is what it was.
    """
    if path.exists() and not path.is_file():  # such as /dev/null: not to be replaced
        with writing(path), path.open("wb") as device:
            yield device
        return
    part = _part(path)
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
    """Replace a file as `atomic_open` does; text is written as UTF-8."""
    with atomic_open(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def _part(path: Path) -> Path:
    """A name for a file in the making that no other writer has."""
    return path.with_name(f".{path.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.part")


def alias(path: Path, name: str) -> None:
    """Give a file another name in its folder, replacing what had it: a link where the file system has them."""
    target, part = path.with_name(name), _part(path.with_name(name))
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
    """Refuse a file that cannot be written before any work is done for it; `-` stands for standard output.

    Raises:
        UserError: names the path, and what is in the way.
    """
    if path == "-":
        return
    if not path or CONTROL.search(path):
        raise UserError(f"cannot write {path!r}: this is not the name of a file")
    with writing(Path(path)):
        folder = os.stat(Path(path).parent or ".")
        if not stat.S_ISDIR(folder.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if Path(path).is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(path if Path(path).exists() else Path(path).parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def acquire_lock(path: Path) -> IO[str]:
    """Lock a file until the returned one is closed, or this process ends, however it ends.

    Where the system or the file system has no such locks, nobody is kept out.

    Raises:
        BlockingIOError: another process has it; the error's text names that process.
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
    """Whether the file could be locked. A reader may have the lock for a moment, see `is_abandoned`."""
    for attempt in range(attempts if fcntl else 0):
        time.sleep(0.02 if attempt else 0)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            continue
        except OSError:  # a file system without locks
            return True
    return fcntl is None


def is_abandoned(path: Path) -> bool:
    """Whether a lock file is there and no process has locked it."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            if fcntl:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return True
        finally:
            os.close(descriptor)
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
