"""Reading what others wrote: plain files of bounded size, UTF-8, and one line on what is wrong with them."""

import os
import re
import stat
from pathlib import Path

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What could break a line, steer a terminal, turn the writing round or not be written as UTF-8."""
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
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait
        with open(descriptor, "rb") as file:
            info = os.fstat(descriptor)
            if stat.S_ISDIR(info.st_mode):
                raise UserError(f"{path}: this is a folder; a file is expected")
            if not stat.S_ISREG(info.st_mode):
                raise UserError(f"{path}: not a plain file (a pipe, a device or a socket); copy its content into one")
            if most is not None and info.st_size > most:
                raise UserError(f"{path}: {info.st_size:,} bytes; such a file has at most {most:,}")
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


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
