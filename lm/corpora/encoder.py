"""A text of any length as ids in a file, in constant memory.

The text is read once. Its characters get numbers in the order in which they appear; when all are known, the numbers in
the file are replaced by the ids of the tokenizer, which follow the code points.
"""

import hashlib
import io
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

import numpy as np

from lm.corpora.tokenizer import CODE_POINTS, UNKNOWN, CharTokenizer, code_points

HEADER = 128
"""Bytes of a .npy file before the ids, for any length of theirs below 10^21."""
BLOCK = 2**20
"""Bytes of a file that have a checksum of their own."""
CHUNK = 2**22
"""Ids that are replaced at a time; their bytes are a multiple of BLOCK."""


class Encoded(NamedTuple):
    """A text as ids in a file."""

    length: int
    """number of ids"""
    tokenizer: CharTokenizer
    digest: str
    """SHA-256, in hexadecimal, of the vocabulary and the ids"""
    checksums: list[int]
    """CRC-32 of each BLOCK of the bytes of the ids"""


def encode(texts: Iterable[str], file: IO[bytes], tokenizer: CharTokenizer | None = None) -> Encoded:
    """Write the ids of a text, as the file format of `numpy.save` has them, to a file that is open for both.

    Args:
        texts: the text in pieces.
        tokenizer: None for that of the characters of the text.
    """
    numbers = Numbers() if tokenizer is None else tokenizer
    file.seek(HEADER)
    length = 0
    for text in texts:
        before, found = numbers.dtype, numbers.encode(text)
        if numbers.dtype != before:
            _widen(file, before, numbers.dtype)
        file.write(found.data)
        length += len(found)
    if isinstance(numbers, Numbers):
        tokenizer = CharTokenizer("".join(map(chr, numbers.code_points)))
        ids = tokenizer.encode("".join(map(chr, numbers.code_points)))
    else:
        tokenizer, ids = numbers, np.arange(len(numbers), dtype=numbers.dtype)
    digest = hashlib.sha256(tokenizer.characters.encode())
    checksums: list[int] = []
    for chunk in _replaced(file, numbers.dtype, ids):
        digest.update(chunk)
        checksums += checksums_of(chunk)
    file.seek(0)
    file.write(_header(length, tokenizer.dtype))
    file.flush()
    return Encoded(length, tokenizer, digest.hexdigest(), checksums)


class Numbers:
    """Numbers of characters in the order in which they appear first."""

    def __init__(self) -> None:
        self.code_points: list[int] = []
        self._unknown = False  # whether UNKNOWN is one of them, which is not in a vocabulary
        self._table = np.full(CODE_POINTS, -1, dtype=np.int32)

    @property
    def dtype(self) -> np.dtype:
        """The type of the numbers, which is that of a tokenizer with these characters."""
        return np.dtype(np.uint16 if len(self.code_points) - self._unknown < 2**16 else np.uint32)

    def encode(self, text: str) -> np.ndarray:
        """The numbers of the characters of a text (n,)."""
        codes = code_points(text)
        found = self._table[codes]
        if found.min(initial=0) < 0:
            new = np.unique(codes[found < 0])
            self._table[new] = np.arange(len(self.code_points), len(self.code_points) + len(new))
            self.code_points += new.tolist()
            self._unknown = self._unknown or ord(UNKNOWN) in new
            found = self._table[codes]
        return found.astype(self.dtype)


def _widen(file: IO[bytes], old: np.dtype, new: np.dtype) -> None:
    """Replace the numbers in the file by those of a wider type, from the last to the first."""
    length = (file.seek(0, io.SEEK_END) - HEADER) // old.itemsize
    for start in reversed(range(0, length, CHUNK)):
        file.seek(HEADER + start * old.itemsize)
        chunk = np.frombuffer(file.read(min(CHUNK, length - start) * old.itemsize), dtype=old)
        file.seek(HEADER + start * new.itemsize)
        file.write(chunk.astype(new).data)
    file.seek(0, io.SEEK_END)


def _replaced(file: IO[bytes], dtype: np.dtype, ids: np.ndarray) -> Iterator[bytes]:
    """Replace each number i in the file by ids[i], which must be of the same size. Yields the new bytes."""
    place = HEADER
    while True:
        file.seek(place)
        if not (raw := file.read(CHUNK * dtype.itemsize)):
            return
        raw = ids[np.frombuffer(raw, dtype=dtype)].tobytes()
        file.seek(place)
        file.write(raw)
        place += len(raw)
        yield raw


def checksums_of(raw: bytes | memoryview) -> list[int]:
    """The CRC-32 of each BLOCK of these bytes."""
    return [zlib.crc32(raw[start : start + BLOCK]) for start in range(0, len(raw), BLOCK)]


def _header(length: int, dtype: np.dtype) -> bytes:
    header = io.BytesIO()
    shape = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(header, shape)
    assert len(header.getvalue()) == HEADER
    return header.getvalue()
