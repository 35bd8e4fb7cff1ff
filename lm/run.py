"""The run folder: the only interface between training and everything after it, and the only code that knows its files.

runs/<name>/
  config.yaml        the resolved configuration
  summary.json       status, parameters, best and final losses, peak memory, characters/s
  metrics.csv        a row per logged step and per validation
  samples.jsonl      step, prompt, text
  tokenizer.json     a `tokenizers` file
  environment.json   versions, processor, command; the same, and what was changed, of each time it was resumed
  checkpoints/       best.ckpt last.ckpt previous.ckpt
  .lock              held by the process that trains

A trainer may die at any moment, so each file is either replaced whole or only appended to; and a checkpoint knows how
long the appended ones were.
"""

import csv
import difflib
import fcntl
import io
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lm.config import Config, UserError, from_yaml
from lm.tokenizer import CharTokenizer

if TYPE_CHECKING:
    from lm.model import LanguageModel

AXES = ("step", "chars", "train_seconds", "flops")
"""What every row of metrics.csv has: any of them can be the x-axis."""
VALUES = (
    "train/loss",
    "val/loss",
    "val/loss_streaming",
    "val/bpc",
    "val/perplexity",
    "lr",
    "grad_norm",
    "chars_per_second",
    "val/accuracy",
)
APPENDED = {"metrics.csv": ",".join(AXES + VALUES) + "\n", "samples.jsonl": ""}
"""The files that grow, and what each starts with."""
LOCK = ".lock"
PACKAGES = ("torch", "lightning", "torchmetrics", "tokenizers", "datasets", "wandb", "numpy")


class Run:
    """A run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    @property
    def taken(self) -> bool:
        """Whether a new run would meet another's files here. A start killed in its first moment leaves hidden ones."""
        if self.path.is_dir():
            return any(not path.name.startswith(".") for path in self.path.iterdir())
        return os.path.lexists(self.path)

    def start(self, config: Config, tokenizer: CharTokenizer) -> None:
        """Make the folder of a new run, and lock it.

        Raises:
            UserError: it cannot be made, or is another's.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        if self.taken:
            raise UserError(f"{self.path} exists already; choose another --name, or go on with --resume")
        self._fill(config, tokenizer, environment(), None)

    def resume(self, config: Config, tokenizer: CharTokenizer, saved: "Saved | None", changed: dict[str, Any]) -> None:
        """Put the folder back to where its checkpoint is, or to the start; what a crash left half made is made whole.

        Args:
            changed: options that are no longer what they were, {name: [before, now]}; kept in environment.json.
        """
        self.lock()
        if saved is not None and saved.path.name != "last.ckpt":
            self._put_back(saved.path)
        history = self._json("environment.json") or environment()
        now = {"step": saved.step if saved else 0, "changed": changed, **environment()}
        history["resumed"] = [*history.get("resumed", []), now]
        self._fill(config, tokenizer, history, saved)

    def _fill(self, config: Config, tokenizer: CharTokenizer, history: dict[str, Any], saved: "Saved | None") -> None:
        """Everything but checkpoints. The configuration comes first: with it, a folder can be resumed."""
        self.write("config.yaml", config.to_yaml())
        with writing(self.checkpoints):
            self.checkpoints.mkdir(exist_ok=True)
            for part in (*self.path.glob(".*.part"), *self.checkpoints.glob(".*.part")):
                part.unlink()
        self.write("tokenizer.json", tokenizer.to_json())
        self.write("environment.json", json.dumps(history, indent=2) + "\n")
        for name, head in APPENDED.items():
            lines = self._lines(name, saved.sizes[name] if saved else 0)
            self.write(name, lines or head.encode())
        self.update_summary(status="running")

    def _put_back(self, path: Path) -> None:
        """Let a checkpoint take the place of the newest, which is damaged, and drop others that are."""
        alias(path, "last.ckpt")
        best = self.checkpoints / "best.ckpt"  # may be the damaged one under another name
        try:
            read_checkpoint(best)
        except UserError:
            best.unlink(missing_ok=True)

    def lock(self) -> None:
        """Keep other trainers out, until `unlock` or the end of this process, however it comes.

        Raises:
            UserError: another one has it.
        """
        if self._lock is not None:
            return
        with writing(self.path / LOCK):
            file = (self.path / LOCK).open("a+")
        for _ in range(20):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.02)  # a reader may have it for a moment, see `abandoned`
            except OSError:
                break  # a file system without locks
        else:
            file.seek(0)
            owner = file.read(100).strip()
            file.close()
            raise UserError(f"{self.path} is being trained by {owner}; stop that first, or choose another --name")
        file.truncate(0)
        file.write(f"process {os.getpid()} of {platform.node()}\n")
        file.flush()
        self._lock = file

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @classmethod
    def find(cls, name: str, runs: str = "runs") -> "Run":
        """Open a run by its name or path; an empty name means the newest.

        Raises:
            UserError: there is none.
        """
        if not name:
            found = sorted(Path(runs).glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
            if not found:
                raise UserError(f"no run in {runs}/ yet; make one with: python train.py")
            return cls(found[-1].parent)
        for path in (Path(name), Path(runs) / name):
            if (path / "config.yaml").is_file():
                return cls(path)
        near = difflib.get_close_matches(name, [p.parent.name for p in Path(runs).glob("*/config.yaml")], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"no run {name}, neither as a path nor in {runs}/{hint}")

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def newest_checkpoint(self) -> "Saved | None":
        """The checkpoint to resume from, or None before the first; a damaged one falls back to the one before it.

        So does one that knows of more rows than there are: what it lacks is made again. Says so on stderr.

        Raises:
            UserError: there are checkpoints, and none is whole.
        """
        problems, lacking = [], []
        for name in ("last.ckpt", "previous.ckpt", "best.ckpt"):
            if not (self.checkpoints / name).exists():
                continue
            try:
                saved = Saved.read(self.checkpoints / name)
            except UserError as error:
                problems.append(str(error))
                continue
            short = [name for name, size in saved.sizes.items() if self._size(name) < size]
            if not short:
                _say(*(f"{problem}; falling back to {saved.path.name}, step {saved.step}" for problem in problems))
                return saved
            problems.append(f"{self.path / short[0]} has lost rows that {saved.path.name} knows of")
            lacking.append(saved)
        if lacking:
            _say(f"{problems[0]}; going on without them from {lacking[0].path.name}, step {lacking[0].step}")
            return lacking[0]
        if problems:
            raise UserError(f"{problems[0]}; no whole checkpoint is left here: start a new run")
        return None

    def write(self, name: str, text: str | bytes) -> None:
        """Replace a file of the folder, whole or not at all."""
        with replacing(self.path / name) as file:
            file.write(text.encode() if isinstance(text, str) else text)

    def config(self) -> Config:
        """The resolved configuration of the run."""
        return from_yaml((self.path / "config.yaml").read_text(encoding="utf-8"))

    def tokenizer(self) -> CharTokenizer:
        return CharTokenizer.load(self.path / "tokenizer.json")

    def fits(self, tokenizer: CharTokenizer) -> bool:
        """Whether this tokenizer is the run's. A run killed at its very start has none."""
        return not (self.path / "tokenizer.json").exists() or self.tokenizer().characters == tokenizer.characters

    def append_metrics(self, row: dict[str, float]) -> None:
        """Add a row to metrics.csv with one write, so that a reader or a crash sees whole rows."""
        cells = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
        self._append("metrics.csv", _csv_row(cells))

    def append_sample(self, step: int, prompt: str, text: str) -> None:
        line = json.dumps({"step": step, "prompt": prompt, "text": text}, ensure_ascii=False)
        self._append("samples.jsonl", line + "\n")

    def _append(self, name: str, text: str) -> None:
        left = text.encode()
        with writing(self.path / name), (self.path / name).open("ab", buffering=0) as file:
            while left:  # a full disk takes a part of it before it refuses
                left = left[file.write(left) :]

    def settle(self) -> dict[str, int]:
        """Bring the rows and samples so far to the disk, to outlast a power loss. Returns the sizes of their files."""
        for name in APPENDED:
            with writing(self.path / name), (self.path / name).open("ab") as file:
                os.fsync(file.fileno())
        return {name: self._size(name) for name in APPENDED}

    def _size(self, name: str) -> int:
        with suppress(OSError):
            return (self.path / name).stat().st_size
        return 0

    def _lines(self, name: str, size: int) -> bytes:
        """The whole lines in the first bytes of a file; none if it is not there."""
        with suppress(OSError):
            text = (self.path / name).read_bytes()[:size]
            return text[: text.rfind(b"\n") + 1]
        return b""

    def summary(self) -> dict[str, Any]:
        """summary.json, or {} before there is one."""
        return self._json("summary.json")

    def _json(self, name: str) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            value = json.loads((self.path / name).read_text(encoding="utf-8"))
            return value if isinstance(value, dict) else {}
        return {}

    def update_summary(self, **values: Any) -> None:
        self.write("summary.json", json.dumps(self.summary() | values, indent=2) + "\n")


def _csv_row(cells: Mapping[str, object]) -> str:
    line = io.StringIO()
    csv.DictWriter(line, AXES + VALUES, restval="", lineterminator="\n").writerow(cells)
    return line.getvalue()


@dataclass
class Saved:
    """What a checkpoint says of its run: the step, the seconds of training, the sizes of the files that grow."""

    path: Path
    step: int
    seconds: float
    sizes: dict[str, int]

    @classmethod
    def read(cls, path: Path) -> "Saved":
        """Raises UserError: the file is damaged, or not a checkpoint to resume from."""
        checkpoint = read_checkpoint(path)
        try:
            recorder = checkpoint["callbacks"]["Recorder"]
            return cls(path, checkpoint["global_step"], recorder["seconds"], recorder["sizes"])
        except (KeyError, TypeError):
            raise UserError(f"{path}: not a checkpoint that training can go on from") from None


def abandoned(folder: Path) -> bool:
    """Whether the trainer of this folder is gone: its lock is there and nobody has it."""
    with suppress(OSError):
        file = os.open(folder / LOCK, os.O_RDONLY | os.O_NONBLOCK)
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
        finally:
            os.close(file)
    return False


def _say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr)


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
def replacing(path: Path, previous: str | None = None) -> Iterator[IO[bytes]]:
    """A file to write in. At any moment, a power loss included, `path` is the old file or the new one, whole.

    Args:
        path: what it will be.
        previous: a name under which the old file stays.

    Raises:
        UserError: it cannot be written; `path` is what it was.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with writing(path):
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if previous and path.exists():
                alias(path, previous)
            os.replace(part, path)
            _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def save_atomically(checkpoint: dict[str, Any], path: Path, previous: str | None = None) -> None:
    """Write a checkpoint, see `replacing`."""
    import torch

    with replacing(path, previous) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # of closing the archive, after what it could not write
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def alias(path: Path, name: str) -> None:
    """Give a checkpoint another name in its folder, replacing what had it: a link where the file system has them."""
    target, part = path.with_name(name), path.with_name(f".{name}.part")
    with writing(target):
        if target.exists() and target.samefile(path):
            return
        part.unlink(missing_ok=True)
        try:
            os.link(path, part)
            os.replace(part, target)
        except OSError:
            with path.open("rb") as old, replacing(target) as new:
                shutil.copyfileobj(old, new)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every system can sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint as data, on the CPU: tensors and plain values, never code.

    Raises:
        UserError: the file is missing, damaged, or not a checkpoint of this program.
    """
    import torch

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no checkpoint {path}") from None
    except Exception as error:  # torch.load raises many types for a damaged file
        raise UserError(f"{path}: damaged, or not a checkpoint: {(str(error) or 'empty').splitlines()[0]}") from None
    if not isinstance(checkpoint, dict) or not {"state_dict", "config", "characters"} <= checkpoint.keys():
        raise UserError(f"{path}: not a checkpoint of this program")
    return checkpoint


def load(path: str | os.PathLike[str]) -> "tuple[LanguageModel, CharTokenizer]":
    """A trained model in eval mode on the CPU, and its tokenizer.

    Args:
        path: a run folder (its best checkpoint), a name under `runs`, or a checkpoint file.

    Raises:
        UserError: there is nothing to load there.
    """
    model, tokenizer, _ = load_with_config(path)
    return model, tokenizer


def load_with_config(path: str | os.PathLike[str]) -> "tuple[LanguageModel, CharTokenizer, Config]":
    """As `load`, with the configuration of the run."""
    from lm.model import LanguageModel

    checkpoint = read_checkpoint(_checkpoint_file(os.fspath(path)))
    config = from_yaml(checkpoint["config"])
    tokenizer = CharTokenizer(checkpoint["characters"])
    model = LanguageModel(len(tokenizer), config.model)
    weights = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: its weights do not fit its configuration: {reason}") from None
    return model.eval(), tokenizer, config


def _checkpoint_file(path: str) -> Path:
    if Path(path).is_file():
        return Path(path)
    run = Run.find(path)
    for name in ("best.ckpt", "last.ckpt", "previous.ckpt"):
        if (run.checkpoints / name).exists():
            return run.checkpoints / name
    raise UserError(f"{run.path}: no checkpoint there yet")


def environment() -> dict[str, Any]:
    """What a result may depend on: versions, processor, threads, the command."""
    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "packages": versions,
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
