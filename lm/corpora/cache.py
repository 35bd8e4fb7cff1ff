"""The cache of encoded corpora, in the user's cache folder: bounded in size, verified by checksums when it is read.

A corpus is two files: the ids as `numpy.save` writes them, and a JSON file with the vocabulary, the digest of the
corpus, and the checksums of blocks of the ids.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from lm.config.options import DataConfig
from lm.corpora.encoder import BLOCK, HEADER, Encoded, checksums_of, encode
from lm.corpora.tokenizer import ByteTokenizer, CharTokenizer, make_tokenizer
from lm.files import UserError, atomic_write, cache_folder, new_part, read_text, remove_leftovers, writing

VERSION = 3
LARGEST = 2**35
"""Bytes of all cached corpora together. Beyond it, those that were used least recently are removed."""
VERIFIED = 256
"""About how many blocks are verified of a corpus that has more, evenly spread: to read all would take too long."""

Cached = tuple[np.ndarray, CharTokenizer, str, int]
"""The ids of a text, memory-mapped; its tokenizer; the digest of both; where its validation split begins."""
TRAINING = 0.9
"""Share of the characters of a text that is before its validation split."""


def read(files: list[Path], config: DataConfig) -> Cached | None:
    """The corpus that is cached for these files; None if it is missing or damaged."""
    ids_path, about_path = _paths(files, config)
    try:
        remove_leftovers(cache_folder())
        ids = np.load(ids_path, mmap_mode="r", allow_pickle=False)
        about = json.loads(read_text(about_path))
        tokenizer = make_tokenizer(about["characters"])
        sealed = about.pop("seal") == _seal(about)
        if not sealed or ids.ndim != 1 or ids.dtype != tokenizer.dtype or not _verified(ids, about["checksums"]):
            return None
        border = range(len(ids) + 1)[about["border"]]
    except Exception:  # numpy and json raise many types for a damaged file; the corpus itself is still there
        return None
    with suppress(OSError):
        os.utime(ids_path)  # `evict` goes by the time of the last use
    return ids, tokenizer, about["digest"], border


def _verified(ids: np.ndarray, checksums: list[int]) -> bool:
    raw = ids.view(np.uint8).data if len(ids) else memoryview(b"")
    if len(checksums) != -(-len(raw) // BLOCK):
        return False
    step = max(1, len(checksums) // VERIFIED)
    return all(
        checksums_of(raw[place * BLOCK : (place + 1) * BLOCK]) == [checksums[place]]
        for place in {*range(0, len(checksums), step), *range(max(0, len(checksums) - 1), len(checksums))}
    )


def _seal(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def write(read_texts: Callable[[], Iterable[str]], files: list[Path], config: DataConfig) -> Cached:
    """Encode a text into the cache, and remove what LARGEST has no room for, least recently used first.

    Where the cache cannot be written, and for a text that is not from files, into a temporary file, which is removed
    with this process.

    Args:
        read_texts: starts to read, and returns the text in pieces.

    Raises:
        UserError: the text cannot be read, or there is no place for its ids.
    """
    ids_path, about_path = _paths(files, config)
    tokenizer = ByteTokenizer() if config.vocabulary == "bytes" else None
    if files:
        with suppress(OSError):
            ids_path.parent.mkdir(parents=True, exist_ok=True)
            part = new_part(ids_path)
            try:
                with part.open("x+b") as file:
                    encoded = encode(read_texts(), file, tokenizer)
                    found = _map(encoded, file)
                    os.fsync(file.fileno())
                with suppress(OSError, UserError):  # without the cache, the next run is only slower
                    os.replace(part, ids_path)
                    atomic_write(about_path, _about(encoded, config, found[-1]))
                    evict()
                return found
            finally:
                part.unlink(missing_ok=True)
    with writing(Path(tempfile.gettempdir())), tempfile.TemporaryFile() as file:
        return _map(encode(read_texts(), file, tokenizer), file)


def _about(encoded: Encoded, config: DataConfig, border: int) -> str:
    known = {
        "source": config.corpus,
        "length": encoded.length,
        "distinct": len(encoded.tokenizer) - 1,
        "characters": encoded.tokenizer.characters,
        "digest": encoded.digest,
        "border": border,
        "checksums": encoded.checksums,
    }
    return json.dumps(known | {"seal": _seal(known)})


def _map(encoded: Encoded, file: IO[bytes]) -> Cached:
    """The text in a file, which may be removed."""
    tokenizer, ids = encoded.tokenizer, np.zeros(0, encoded.tokenizer.dtype)
    if encoded.length:
        ids = np.memmap(file, tokenizer.dtype, "r", HEADER, (encoded.length,))
    return ids, tokenizer, encoded.digest, tokenizer.place(ids, TRAINING)


def evict() -> None:
    """Remove what LARGEST has no room for, least recently used first. Raises OSError."""
    size = 0
    for path in sorted(cache_folder().glob("*.npy"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        size += path.stat().st_size
        if size > LARGEST:
            path.unlink()
            path.with_suffix(".json").unlink(missing_ok=True)


def _paths(files: list[Path], config: DataConfig) -> tuple[Path, Path]:
    """Where the ids and the vocabulary of these files are cached: another name, size or time is another place."""
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(repr((VERSION, stats, config.column, config.vocabulary)).encode()).hexdigest()[:24]
    return cache_folder() / f"{key}.npy", cache_folder() / f"{key}.json"
