"""The run folder: the only interface between training and everything after it, and the only code that knows its files.

runs/<name>/
  config.yaml        the resolved configuration
  summary.json       status, parameters, best and final losses, peak memory, characters/s
  metrics.csv        a row per logged step and per validation
  samples.jsonl      step, prompt, text
  tokenizer.json     a `tokenizers` file
  environment.json   versions, processor, command
  checkpoints/       best.ckpt last.ckpt previous.ckpt
"""

import csv
import difflib
import io
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
METRICS_HEAD = ",".join(AXES + VALUES) + "\n"
PACKAGES = ("torch", "lightning", "torchmetrics", "tokenizers", "datasets", "wandb", "numpy")


class Run:
    """A run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, config: Config, tokenizer: CharTokenizer, checkpoint: Path | None) -> None:
        """Make the folder of a new run, or put that of a resumed one back to where its checkpoint is.

        Raises:
            UserError: it cannot be made.
        """
        if (self.path / "metrics.csv").exists():
            self.cut_back(read_checkpoint(checkpoint)["global_step"] if checkpoint else 0)
            return
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the run folder {self.path}: {error.strerror}") from None
        self.write("tokenizer.json", tokenizer.to_json())
        self.write("environment.json", json.dumps(environment(), indent=2) + "\n")
        self.write("samples.jsonl", "")
        self.write("config.yaml", config.to_yaml())
        self.write("metrics.csv", METRICS_HEAD)

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

    def newest_checkpoint(self) -> Path | None:
        """The checkpoint to resume from, or None before the first; a damaged one falls back to the one before it."""
        problems = []
        for name in ("last.ckpt", "previous.ckpt"):
            path = self.checkpoints / name
            if path.exists():
                try:
                    read_checkpoint(path)
                    return path
                except UserError as error:
                    problems.append(str(error))
                    print(f"{error}; falling back to the one before", file=sys.stderr)
        if problems:
            raise UserError(problems[0])
        return None

    def write(self, name: str, text: str) -> None:
        """Replace a file of the folder, whole or not at all."""
        part = self.path / f".{name}.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, self.path / name)

    def config(self) -> Config:
        """The resolved configuration of the run."""
        return from_yaml((self.path / "config.yaml").read_text(encoding="utf-8"))

    def tokenizer(self) -> CharTokenizer:
        return CharTokenizer.load(self.path / "tokenizer.json")

    def append_metrics(self, row: dict[str, float]) -> None:
        """Add a row to metrics.csv with one write, so that a reader or a crash sees whole rows."""
        cells = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
        self._append("metrics.csv", _csv_row(cells))

    def append_sample(self, step: int, prompt: str, text: str) -> None:
        line = json.dumps({"step": step, "prompt": prompt, "text": text}, ensure_ascii=False)
        self._append("samples.jsonl", line + "\n")

    def _append(self, name: str, text: str) -> None:
        with (self.path / name).open("ab", buffering=0) as file:
            file.write(text.encode())

    def cut_back(self, step: int) -> None:
        """Forget the rows and samples after a step, and what a crash left of a row: the run goes on from there."""
        rows = [row for row in csv.DictReader(self._lines("metrics.csv")) if int(row["step"]) <= step]
        self.write("metrics.csv", METRICS_HEAD + "".join(map(_csv_row, rows)))
        samples = self._lines("samples.jsonl")
        self.write("samples.jsonl", "".join(line for line in samples if json.loads(line)["step"] <= step))

    def _lines(self, name: str) -> list[str]:
        """The whole lines of a file. Cut as bytes: text may hold characters that str takes for line ends."""
        lines = (self.path / name).read_bytes().splitlines(keepends=True)
        return [line.decode() for line in lines if line.endswith(b"\n")]

    def summary(self) -> dict[str, Any]:
        """summary.json, or {} before there is one."""
        with suppress(OSError, ValueError):
            return json.loads((self.path / "summary.json").read_text(encoding="utf-8"))
        return {}

    def update_summary(self, **values: Any) -> None:
        self.write("summary.json", json.dumps(self.summary() | values, indent=2) + "\n")


def _csv_row(cells: Mapping[str, object]) -> str:
    """A line of metrics.csv, under today's columns whatever those of the program were that began the run."""
    line = io.StringIO()
    csv.DictWriter(line, AXES + VALUES, restval="", extrasaction="ignore", lineterminator="\n").writerow(cells)
    return line.getvalue()


def save_atomically(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that at any moment, a power loss included, `path` is the old file or the new one, whole."""
    import torch

    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    _sync_folder(path.parent)


def alias(path: Path, name: str) -> None:
    """Give a checkpoint another name in its folder, replacing what had it: a link where the file system has them."""
    part = path.with_name(f".{name}.part")
    part.unlink(missing_ok=True)
    try:
        os.link(path, part)
    except OSError:
        shutil.copyfile(path, part)
    os.replace(part, path.with_name(name))


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
        raise UserError(f"{path}: damaged, or not a checkpoint: {str(error).splitlines()[0]}") from None
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
