"""The cache of encoded corpora."""

import hashlib
import json
from pathlib import Path

import numpy as np

from lm.config.options import DataConfig
from lm.corpora.tokenizer import CharTokenizer
from lm.files import UserError, atomic_open, atomic_write, cache_folder
from lm.files import read_text as read_plain

CACHE_VERSION = 1


def cached(files: list[Path], config: DataConfig) -> tuple[np.ndarray, CharTokenizer] | None:
    """What the cache holds for these files, or None: for what is missing, damaged, or no ids of these characters."""
    paths = _cache_paths(files, config)
    try:
        ids = np.load(paths[0], mmap_mode="r", allow_pickle=False)
        tokenizer = CharTokenizer(json.loads(read_plain(paths[1])))
    except Exception:  # whatever damage makes numpy or json raise, the corpus itself is still there
        return None
    fits = (
        isinstance(ids, np.ndarray)
        and ids.ndim == 1
        and ids.dtype == tokenizer.dtype
        and ids.max(initial=0) < tokenizer.unknown
    )
    return (ids, tokenizer) if fits else None


def _cache_paths(files: list[Path], config: DataConfig) -> tuple[Path, Path]:
    """Where the ids and the characters of these files are cached: a change of name, size or time is a miss."""
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(repr((CACHE_VERSION, stats, config.column)).encode()).hexdigest()[:24]
    folder = cache_folder()
    return folder / f"{key}.npy", folder / f"{key}.json"


def keep(ids: np.ndarray, tokenizer: CharTokenizer, files: list[Path], config: DataConfig) -> None:
    """Keep the ids for the next run, whole or not at all. A cache that cannot be written is only slower."""
    try:
        ids_path, characters_path = _cache_paths(files, config)
        ids_path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_open(ids_path) as file:
            np.save(file, ids)
        atomic_write(characters_path, json.dumps(tokenizer.characters))
    except (OSError, UserError):
        pass
