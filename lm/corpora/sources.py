"""Where texts come from: the embedded corpora, files, folders, globs, tables, and data sets on the Hugging Face Hub."""

import codecs
import glob
import io
import logging
import lzma
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from lm.config.fields import nearest
from lm.config.options import DataConfig
from lm.files import DATA, UserError, as_text, read_bytes

EMBEDDED = ("tiny_shakespeare", "shakespeare")
TABLES = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}
"""File endings that `datasets` reads, taking the column `data.column`; every other file is plain text."""
SMALL_XZ = 2**28
"""Bytes to which any .xz file may grow; a larger one at most to a hundred times its compressed size."""


def find_files(config: DataConfig) -> list[Path]:
    """The files of a corpus; an empty list if it is on the Hub.

    Raises:
        UserError: there is no such file, and the name cannot be an id of the Hub.
    """
    name = config.corpus
    if name in EMBEDDED:
        return [DATA / f"{name}.txt.xz"]
    path = Path(name).expanduser()
    if name and path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    elif name and path.exists():
        if not path.is_file():
            raise UserError(f"data.corpus {name}: not a plain file (a pipe, a device or a socket); copy it into one")
        files = [path]
    elif glob.has_magic(name):
        files = [Path(file) for file in sorted(glob.glob(str(path), recursive=True)) if Path(file).is_file()]
    elif name.startswith("hf://") or (re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and path.suffix != ".txt"):
        return []
    else:
        hint = nearest(name, EMBEDDED) or f"; embedded are {' and '.join(EMBEDDED)}"
        raise UserError(f"data.corpus {name}: no such file or folder{hint}")
    if not files:
        raise UserError(f"data.corpus {name}: no file there")
    return files


def read_texts(config: DataConfig, files: list[Path]) -> Iterator[str]:
    """The texts of all files, or of the data set on the Hub, each ended by a newline if another follows.

    Raises:
        UserError: one of them cannot be read, or has no such column.
    """
    if not files:
        return _join(_read_hub(config))
    return _join(_read_table(file, config) if file.suffix in TABLES else read_text(file) for file in files)


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
    """The content of an .xz file, bounded: text is compressed tenfold at best, a decompression bomb a thousandfold."""
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
    problem = f"{path}: `datasets` cannot read it"
    table = _load_dataset(TABLES[path.suffix], problem, online=False, data_files=str(path), split="train")
    return "".join(_join(_column(table, config, str(path))))


def _read_hub(config: DataConfig) -> Iterator[str]:
    """All splits of a data set on the Hub in their order, or the one asked for; without a network, from the cache."""
    name, options = config.corpus, {"revision": config.revision}
    if name.startswith("hf://"):
        name, options = TABLES.get(Path(name).suffix, "text"), {"data_files": name}
    problem = f"data.corpus {config.corpus}: no such file here, and the Hub gave none"
    data = _load_dataset(name, problem, online=_hub_answers(), split=config.split, **options)
    for split in data.values() if isinstance(data, dict) else [data]:
        yield from _column(split, config, config.corpus)


def _hub_answers() -> bool:
    """Whether the Hub can be reached: one request with a timeout, where `datasets` tries each of its own six times."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    with suppress(Exception):
        get_session().head(constants.ENDPOINT, timeout=5)
        return True
    return False


def _load_dataset(name: str, problem: str, online: bool, **options: Any) -> Any:
    """`datasets.load_dataset` without log lines; if not online, also without requests and progress bars.

    Raises:
        UserError: it raises any error; says `problem` and the first line of the error.
    """
    import datasets
    from huggingface_hub import constants

    logs, bars = logging.root.manager.disable, datasets.is_progress_bar_enabled()
    offline = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    try:
        logging.disable()
        if not online:
            datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
            datasets.disable_progress_bars()
        return datasets.load_dataset(name, **options)
    except Exception as error:  # of the network, of authentication, of its readers: many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{problem}: {reason}") from None
    finally:
        logging.disable(logs)
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = offline
        if bars:
            datasets.enable_progress_bars()


def _column(table, config: DataConfig, name: str) -> Iterator[str]:  # type: ignore[no-untyped-def]
    if config.column not in table.column_names:
        raise UserError(f"{name}: no column {config.column}; data.column can be {', '.join(table.column_names)}")
    for value in table[config.column]:
        if not isinstance(value, str):
            raise UserError(f"{name}: column {config.column} holds {type(value).__name__}, not text")
        yield value


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
