"""Corpora: from a name, path, glob or Hub id to one flat array of character ids, split 90/10 by position."""

import codecs
import difflib
import glob
import io
import lzma
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lm.config.options import DataConfig
from lm.files import DATA, UserError, as_text, read_bytes

EMBEDDED = ("tiny_shakespeare", "shakespeare")


TABLES = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}
"""File endings that `datasets` reads, taking the column `data.column`; every other file is plain text."""


SMALL_XZ = 2**28
"""Bytes to which any .xz file may grow; beyond, to a hundred times its size."""


def find_files(config: DataConfig) -> list[Path]:
    """The files of a corpus; none if it is on the Hub."""
    name = config.corpus
    if name in EMBEDDED:
        return [DATA / f"{name}.txt.xz"]
    path = Path(name).expanduser()
    if name and path.is_dir():
        return _some([p for p in sorted(path.rglob("*")) if p.is_file() and not p.name.startswith(".")], name)
    if name and path.exists():
        if not path.is_file():
            raise UserError(f"data.corpus {name}: not a plain file (a pipe, a device or a socket); copy it into one")
        return [path]
    if glob.has_magic(name):
        return _some([Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if Path(p).is_file()], name)
    if name.startswith("hf://") or (re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and path.suffix != ".txt"):
        return []
    near = difflib.get_close_matches(name, EMBEDDED, 1)
    hint = f"did you mean {near[0]}?" if near else f"embedded are {' and '.join(EMBEDDED)}"
    raise UserError(f"data.corpus {name}: no such file or folder; {hint}")


def _some(files: list[Path], name: str) -> list[Path]:
    if not files:
        raise UserError(f"data.corpus {name}: no file there")
    return files


def _read(config: DataConfig, files: list[Path]) -> Iterator[str]:
    """The texts of all files, each ended by a newline if another follows."""
    if not files:
        yield from _join(_read_hub(config))
        return
    yield from _join(_read_table(file, config) if file.suffix in TABLES else read_text(file) for file in files)


def _join(texts: Iterable[str]) -> Iterator[str]:
    ended = True
    for text in texts:
        if not ended:
            yield "\n"
        yield text
        ended = text.endswith("\n") or not text


def read_text(path: Path) -> str:
    """A UTF-8 file, perhaps compressed with xz; see `lm.files.read_text`.

    Raises:
        UserError: it cannot be read, or is not UTF-8 text; names the position of the first bad byte.
    """
    raw = read_bytes(path)
    return as_text(_decompress(raw, path) if path.suffix == ".xz" else raw, path)


def _decompress(raw: bytes, path: Path) -> bytes:
    """The content of an .xz file, in bounded memory: text shrinks tenfold at best, a bomb a thousandfold."""
    most = max(SMALL_XZ, 100 * len(raw))
    parts, size = [], 0
    try:
        with lzma.open(io.BytesIO(raw)) as file:
            while part := file.read(2**20):
                parts.append(part)
                size += len(part)
                if size > most:
                    raise UserError(f"{path}: grows more than a hundredfold when unpacked, beyond {most:,} bytes")
    except (lzma.LZMAError, EOFError) as error:
        raise UserError(f"{path}: {error}") from None
    return b"".join(parts)


def _read_table(path: Path, config: DataConfig) -> str:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # `datasets` would ask the Hub for its own reader of local files
    from datasets import load_dataset

    try:
        table = load_dataset(TABLES[path.suffix], data_files=str(path), split="train")
    except Exception as error:  # `datasets` raises whatever its readers raise
        raise UserError(f"{path}: `datasets` cannot read it: {_first_line(error)}") from None
    return "".join(_join(_column(table, config, str(path))))


def _read_hub(config: DataConfig) -> Iterator[str]:
    """All splits of a data set on the Hub in their order, or the one asked for."""
    from datasets import DatasetDict, load_dataset

    try:
        if config.corpus.startswith("hf://"):
            kind = TABLES.get(Path(config.corpus).suffix, "text")
            data = load_dataset(kind, data_files=config.corpus, split=config.split)
        else:
            data = load_dataset(config.corpus, split=config.split, revision=config.revision)
    except Exception as error:  # network, authentication, missing data set: many types, one meaning for the user
        raise UserError(
            f"data.corpus {config.corpus}: no such file here, and the Hub gave none: {_first_line(error)}"
        ) from None
    for split in data.values() if isinstance(data, DatasetDict) else [data]:
        yield from _column(split, config, config.corpus)


def _column(table, config: DataConfig, name: str) -> Iterator[str]:  # type: ignore[no-untyped-def]
    if config.column not in table.column_names:
        raise UserError(f"{name}: no column {config.column}; data.column can be {', '.join(table.column_names)}")
    for value in table[config.column]:
        if not isinstance(value, str):
            raise UserError(f"{name}: column {config.column} holds {type(value).__name__}, not text")
        yield value


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def read_pieces(path: Path | None, size: int = 1 << 20) -> Iterator[str]:
    """A text of any length, in pieces of at most `size` bytes: a UTF-8 file, perhaps compressed with xz, or stdin.

    Raises:
        UserError: as `read_text`.
    """
    name = path or "stdin"
    decoder, first = codecs.getincrementaldecoder("utf-8")(), True
    try:
        opened: Any = nullcontext(sys.stdin.buffer)
        if path is not None:
            opened = lzma.open(path) if path.suffix == ".xz" else path.open("rb")  # noqa: SIM115
        with opened as source:
            while raw := source.read(size):
                text = decoder.decode(raw)
                yield text.removeprefix("\ufeff") if first else text
                first = first and not text
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 text ({error.reason}); convert it first with iconv") from None
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise UserError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
