"""Where texts come from: the embedded corpora, files, folders, globs, tables, and data sets on the Hugging Face Hub."""

import codecs
import glob
import gzip
import logging
import lzma
import re
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from lm.config.fields import nearest
from lm.config.options import DataConfig
from lm.files import DATA, UserError

EMBEDDED = ("tiny_shakespeare", "shakespeare")
TABLES = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}
"""File endings that `datasets` reads, taking the column `data.column`; every other file is plain text."""
COMPRESSED = (".xz", ".gz", ".zst")
SMALL = 2**28
"""Bytes to which any compressed file may grow; a larger one at most to a hundred times its compressed size."""
PIECE = 2**20
"""Bytes of a file, or characters of a table, that are read at a time."""


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
    """The texts of all files, or of the data set on the Hub, each ended by a newline if another follows; in pieces.

    Raises:
        UserError: one of them cannot be read, or has no such column.
    """
    gathered, length = list[str](), 0
    for piece in _join(_texts(config, files)):  # a row of a table is often a short piece
        gathered.append(piece)
        length += len(piece)
        if length >= PIECE:
            yield "".join(gathered)
            gathered, length = [], 0
    yield "".join(gathered)


def _texts(config: DataConfig, files: list[Path]) -> Iterator[Iterable[str]]:
    """Each text in pieces: a file, or a row of a table."""
    if not files:
        yield from ([row] for row in _read_hub(config))
    for file in files:
        if file.suffix in TABLES:
            yield from ([row] for row in _read_table(file, config))
        else:
            yield read_pieces(file, raw=config.vocabulary == "bytes")


def _join(texts: Iterable[Iterable[str]]) -> Iterator[str]:
    end = "\n"
    for text in texts:
        if end != "\n":
            yield "\n"
        end = "\n"
        for piece in text:
            yield piece
            end = piece[-1:] or end


def read_text(path: Path) -> str:
    """The whole of a file; see `read_pieces`."""
    return "".join(read_pieces(path))


def read_pieces(path: Path | None, size: int = PIECE, raw: bool = False) -> Iterator[str]:
    """A text of any length, in pieces of at most `size` bytes: a UTF-8 file, perhaps compressed, or stdin.

    Line ends are kept; a byte order mark at the start is dropped.

    Args:
        raw: take any file, with all of its bytes: see `lm.corpora.tokenizer` on those that are not UTF-8.

    Raises:
        UserError: it cannot be read, or is not UTF-8 text; names the position of the first wrong byte.
    """
    name = path or "stdin"
    try:
        with _open(path) if path is not None else nullcontext(sys.stdin.buffer) as source:
            pieces = iter(lambda: source.read(size), b"")
            yield from codecs.iterdecode(pieces, "utf-8", "surrogateescape") if raw else _decode(source, name, size)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{name}: {getattr(error, 'strerror', None) or error}") from None


def _decode(source: Any, name: Path | str, size: int) -> Iterator[str]:
    """The pieces of an open file."""
    decoder, place, first = codecs.getincrementaldecoder("utf-8")(), 0, True
    raw = b"-"
    while raw:
        raw = source.read(size)
        if place == 0 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"{name}: this is UTF-16 text; convert it first: iconv -f UTF-16 -t UTF-8")
        waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            bad = f"byte 0x{error.object[error.start]:02x} at position {place - waiting + error.start}"
            raise UserError(f"{name}: not UTF-8 text ({bad}: {error.reason}); convert it first with iconv") from None
        if "\0" in text:
            position = place - waiting + len(text[: text.index("\0")].encode())
            raise UserError(f"{name}: not text (a NUL character at position {position})")
        place += len(raw)
        yield text.removeprefix("\ufeff") if first else text
        first = first and not text


def _open(path: Path) -> Any:
    """A file, uncompressed if its name says that it is compressed. Raises UserError if what that needs is missing."""
    if path.suffix not in COMPRESSED:
        return path.open("rb")
    if path.suffix == ".xz":
        return Unpacked(lzma.open(path), path)
    if path.suffix == ".gz":
        return Unpacked(gzip.open(path), path)
    try:
        import zstandard
    except ModuleNotFoundError:
        raise UserError(f"{path}: reading .zst needs the package zstandard: pip install zstandard") from None
    return Unpacked(Frames(path, zstandard.ZstdDecompressor()), path)


class Frames:
    """A .zst file that must have its end, which zstandard's own reader does not miss."""

    def __init__(self, path: Path, decompressor: Any) -> None:
        self._pieces = self._read(path, decompressor)

    @staticmethod
    def _read(path: Path, decompressor: Any) -> Iterator[bytes]:
        frame = None
        with path.open("rb") as file:
            while raw := file.read(2**12):  # which become 2**27 bytes at most
                while raw:
                    frame = frame or decompressor.decompressobj()
                    yield frame.decompress(raw)
                    raw, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
        if frame is not None:
            raise EOFError("Compressed file ended before the end-of-stream marker was reached")

    def read(self, size: int) -> bytes:
        """The next bytes, not always `size`; none at the end. Raises EOFError if that is missing."""
        return next(filter(None, self._pieces), b"")

    def close(self) -> None:
        """Close the file."""
        self._pieces.close()  # type: ignore[attr-defined]


class Unpacked:
    """A compressed file, bounded: text is compressed tenfold at best, a decompression bomb a thousandfold."""

    def __init__(self, file: Any, path: Path) -> None:
        self.file, self.path = file, path
        self.most, self.size = max(SMALL, 100 * path.stat().st_size), 0

    def __enter__(self) -> "Unpacked":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read(self, size: int) -> bytes:
        """The next bytes. Raises UserError if there are too many, or if the file is damaged."""
        try:
            raw = self.file.read(size)
        except Exception as error:  # zstandard has an error of its own
            raise UserError(f"{self.path}: {error}") from None
        self.size += len(raw)
        if self.size > self.most:
            raise UserError(f"{self.path}: grows more than a hundredfold when unpacked, beyond {self.most:,} bytes")
        return raw


def _read_table(path: Path, config: DataConfig) -> Iterator[str]:
    problem = f"{path}: `datasets` cannot read it"
    options = {"data_files": str(path), "split": "train", "streaming": True}
    with _refusing(problem):
        yield from _column(_load_dataset(TABLES[path.suffix], problem, online=False, **options), config, str(path))


def _read_hub(config: DataConfig) -> Iterator[str]:
    """All splits of a data set on the Hub in their order, or the one asked for; without a network, from the cache."""
    name = config.corpus
    options: dict[str, Any] = {"revision": config.revision}
    if name.startswith("hf://"):
        name, options = TABLES.get(Path(name).suffix, "text"), {"data_files": name}
    problem = f"data.corpus {config.corpus}: no such file here, and the Hub gave none"
    online = hub_answers()
    if online and _is_large(name, options):
        options["streaming"] = True
    data = _load_dataset(name, problem, online=online, split=config.split, **options)
    for split in data.values() if isinstance(data, dict) else [data]:
        yield from _column(split, config, config.corpus)


def _is_large(name: str, options: dict[str, Any]) -> bool:
    """Whether a data set does not fit the disk twice, as `datasets` keeps what it downloads and a table of it."""
    import datasets

    with suppress(Exception):  # not every data set says its size
        about = datasets.load_dataset_builder(name, **options).info
        size = (about.download_size or 0) + (about.dataset_size or 0)
        return size > shutil.disk_usage(Path.home()).free
    return False


def hub_answers() -> bool:
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
        UserError: see `_refusing`.
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
        with _refusing(problem):
            return datasets.load_dataset(name, **options)
    finally:
        logging.disable(logs)
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = offline
        if bars:
            datasets.enable_progress_bars()


@contextmanager
def _refusing(problem: str) -> Iterator[None]:
    """Turn any error of `datasets` into a UserError: of the network, of authentication, of its readers."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{problem}: {reason}") from None


def _column(table: Any, config: DataConfig, name: str) -> Iterator[str]:
    for rows in table.iter(batch_size=1000):
        if config.column not in rows:
            raise UserError(f"{name}: no column {config.column}; data.column can be {', '.join(rows)}")
        for value in rows[config.column]:
            if not isinstance(value, str):
                raise UserError(f"{name}: column {config.column} holds {type(value).__name__}, not text")
            yield value
