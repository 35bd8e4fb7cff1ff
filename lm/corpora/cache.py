"""The cache of encoded corpora, in the user's cache folder: bounded in size, verified by checksum when it is read."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from lm.config.options import DataConfig
from lm.corpora.tokenizer import CharTokenizer
from lm.files import UserError, atomic_open, atomic_write, cache_folder, read_text, remove_leftovers

VERSION = 2
LARGEST = 2**33
"""Bytes of all cached corpora together. Beyond it, those that were used least recently are removed."""

Encoded = tuple[np.ndarray, CharTokenizer, str]
"""The ids of a text, its tokenizer, and the digest of both."""


def digest_of(ids: np.ndarray, tokenizer: CharTokenizer) -> str:
    """SHA-256, in hexadecimal, of the vocabulary and the ids (about a second for 10^9 characters)."""
    digest = hashlib.sha256(tokenizer.characters.encode())
    digest.update(np.ascontiguousarray(ids).data)
    return digest.hexdigest()


def read(files: list[Path], config: DataConfig) -> Encoded | None:
    """The corpus that is cached for these files, its ids memory-mapped; None if it is missing or damaged."""
    ids_path, about_path = _paths(files, config)
    try:
        remove_leftovers(cache_folder())
        ids = np.load(ids_path, mmap_mode="r", allow_pickle=False)
        about = json.loads(read_text(about_path))
        tokenizer = CharTokenizer(about["characters"])
        fits = ids.ndim == 1 and ids.dtype == tokenizer.dtype and ids.max(initial=0) < tokenizer.unknown
        if not fits or digest_of(ids, tokenizer) != about["digest"]:
            return None
    except Exception:  # numpy and json raise many types for a damaged file; the corpus itself is still there
        return None
    with suppress(OSError):
        os.utime(ids_path)  # `write` removes by the time of the last use
    return ids, tokenizer, about["digest"]


def write(corpus: Encoded, files: list[Path], config: DataConfig) -> None:
    """Cache a corpus for the next run, and make room for it: see `evict`.

    Errors are ignored: without a cache, the next run is only slower.
    """
    ids, tokenizer, digest = corpus
    with suppress(OSError, UserError):
        ids_path, about_path = _paths(files, config)
        cache_folder().mkdir(parents=True, exist_ok=True)
        with atomic_open(ids_path) as file:
            np.save(file, ids)
        atomic_write(about_path, json.dumps({"characters": tokenizer.characters, "digest": digest}))
        evict()


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
    key = hashlib.sha256(repr((VERSION, stats, config.column)).encode()).hexdigest()[:24]
    return cache_folder() / f"{key}.npy", cache_folder() / f"{key}.json"
