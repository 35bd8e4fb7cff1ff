"""Run folders as plain data: tolerant of anything, since a folder may be half-written, damaged or a stranger's."""

import glob
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from lm.config.strict_yaml import read_yaml
from lm.files import UserError, printable
from lm.runs.folder import abandoned
from lm.runs.metrics import AXES, VALUES

NAN = float("nan")
LOSSES = ("val/loss", "val/loss_streaming")
"""The losses that a target can be set for: windowed and streaming, nats per character."""
FILES = ("config.yaml", "summary.json", "metrics.csv", "samples.jsonl", "tokenizer.json", "environment.json")
MARKS = FILES[:3]
"""A folder with any of these is a run folder."""
LARGEST = 512 * 2**20
"""Bytes beyond which a file is not one of ours."""
HUGE = 1e30
"""What is beyond this is no step, time or loss."""
NOT_COMPARED = ("name", "seed", "runs", "version")
"""Options that make no other experiment; nor does `log.*`."""

Columns = dict[str, list[float]]
Stamp = tuple[tuple[int, int], ...]


@dataclass
class Sample:
    """What a run wrote when it was so far; the prompt is part of it."""

    step: int
    text: str


@dataclass
class RunData:
    """What a run folder says. Every field may be empty; `problems` says what could not be read."""

    path: Path
    name: str
    config: dict[str, str] = field(default_factory=dict)
    """the configuration, flat, as text: {"model.width": "128", ...}"""
    summary: dict[str, Any] = field(default_factory=dict)
    columns: Columns = field(default_factory=dict)
    """AXES and VALUES, equally long, NaN where the file has nothing"""
    samples: list[Sample] = field(default_factory=list)
    vocabulary: str = ""
    """digest of the tokenizer"""
    processor: str = ""
    problems: list[str] = field(default_factory=list)

    def points(self, value: str, axis: str = "step") -> tuple[list[float], list[float]]:
        """The points of a curve: (x, y), in the order of the file; those that no plot can show are left out."""
        pairs = zip(self.columns.get(axis, ()), self.columns.get(value, ()), strict=True)
        kept = [(x, y) for x, y in pairs if abs(x) < HUGE and abs(y) < HUGE]
        return [x for x, _ in kept], [y for _, y in kept]

    def validations(self, metric: str) -> list[tuple[float, int]]:
        """The validations in order: (loss, row)."""
        losses = self.columns.get(metric, [])
        return [(losses[row], row) for row in self._validated if abs(losses[row]) < HUGE]

    @cached_property
    def _validated(self) -> list[int]:
        """Few of many rows, and asked for often."""
        both = zip(*(self.columns.get(metric, ()) for metric in LOSSES), strict=True)
        return [row for row, losses in enumerate(both) if any(loss == loss for loss in losses)]

    @property
    def mixer(self) -> str:
        mixer = self.summary.get("mixer") or self.config.get("model.mixer")
        return printable(mixer[:80]) if isinstance(mixer, str) and mixer else "?"

    @property
    def status(self) -> str:
        status = self.summary.get("status")
        return printable(status[:40]) if isinstance(status, str) else "no summary"

    @property
    def experiment(self) -> tuple[tuple[str, str], ...] | None:
        """The configuration without what may differ between repetitions; None where there is no configuration."""
        return tuple(sorted(item for item in self.config.items() if compared(item[0]))) or None

    def number(self, *keys: str) -> float:
        """A finite number of summary.json, the first of these keys that has one; else NaN."""
        for key in keys:
            value = self.summary.get(key)
            if is_number(value):
                return float(value)
        return NAN


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value of a JSON file is a finite number that no plot, nor float, chokes on."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < HUGE


def compared(key: str) -> bool:
    """Whether this option makes another experiment."""
    return key not in NOT_COMPARED and not key.startswith("log.")


class Reader:
    """Finds and reads runs; reads a folder again only when one of its files has changed.

    Args:
        patterns: run folders, folders of run folders, or globs of either.
    """

    def __init__(self, patterns: list[str]) -> None:
        self.patterns = patterns
        self.skipped: list[str] = []
        """folders named or matched that hold no run"""
        self._known: dict[Path, tuple[Stamp, RunData]] = {}

    def read(self) -> list[RunData]:
        """All runs, in the order of the patterns.

        Raises:
            UserError: a pattern matches nothing.
        """
        paths = self._find()
        stamps = {path: _stamp(path) for path in paths}
        for path in paths:
            if path not in self._known or self._known[path][0] != stamps[path]:
                self._known[path] = (stamps[path], read_run(path))
        runs = [self._known[path][1] for path in paths]
        for run, name in zip(runs, _names(paths), strict=True):
            run.name = name
        return runs

    def stamp(self, run: RunData) -> Stamp:
        """Sizes and times of the files that a run was read from: its revision."""
        return self._known[run.path][0]

    def _find(self) -> list[Path]:
        self.skipped = []
        found: dict[Path, Path] = {}
        for pattern in self.patterns:
            for folder in _folders(pattern):
                runs = [folder] if _is_run(folder) else [child for child in _children(folder) if _is_run(child)]
                if not runs:
                    self.skipped.append(str(folder))
                for run in runs:
                    found.setdefault(run.resolve(), run)
        return list(found.values())


def _folders(pattern: str) -> list[Path]:
    if Path(pattern).is_dir():
        return [Path(pattern)]
    matches = [Path(match) for match in sorted(glob.glob(os.path.expanduser(pattern)))]
    if folders := [path for path in matches if path.is_dir()]:
        return folders
    if (Path("runs") / pattern).is_dir():
        return [Path("runs") / pattern]
    if pattern == "runs":
        raise UserError("no runs/ here yet; make a run with: python train.py")
    raise UserError(f"no run folder {pattern}; give run folders, or a folder or glob of them, such as runs/*")


def _children(folder: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(path for path in folder.iterdir() if path.is_dir())
    return []


def _is_run(folder: Path) -> bool:
    return any(_size_and_time(folder / name)[0] >= 0 for name in MARKS)


def _size_and_time(path: Path) -> tuple[int, int]:
    """(-1, 0) for what is not a plain file: reading a pipe would wait for ever."""
    with suppress(OSError):
        info = path.stat()
        if stat.S_ISREG(info.st_mode):
            return info.st_size, info.st_mtime_ns
    return -1, 0


def _stamp(folder: Path) -> Stamp:
    return (*(_size_and_time(folder / name) for name in FILES), (abandoned(folder), 0))


def _names(paths: list[Path]) -> list[str]:
    """Folder names, with as much of the path before them as it takes to tell them apart."""
    parts = [printable(str(path.resolve())).strip("/").split("/") for path in paths]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return names


def read_run(path: Path) -> RunData:
    """Read one folder; what is missing or damaged is left empty and noted."""
    run = RunData(path, path.name)
    run.config = _read_config(path / "config.yaml", run.problems)
    run.summary = _read_json(path / "summary.json")
    if run.summary.get("status") == "running" and abandoned(path):
        run.summary["status"] = "stopped"
    run.columns = _read_metrics(path / "metrics.csv", run.problems)
    run.samples = _read_samples(path / "samples.jsonl")
    if tokenizer := _text(path / "tokenizer.json"):
        run.vocabulary = hashlib.sha256(tokenizer.encode()).hexdigest()
    environment = _read_json(path / "environment.json")
    parts = (run.summary.get("device"), environment.get("processor"))
    run.processor = " ".join(printable(part[:80]) for part in parts if isinstance(part, str) and part)
    return run


def _text(path: Path) -> str:
    size, _ = _size_and_time(path)
    with suppress(OSError):
        if 0 < size <= LARGEST:
            return path.read_text(encoding="utf-8", errors="replace")
    return ""


def _read_json(path: Path) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        value = json.loads(_text(path))
        if isinstance(value, dict):
            return value
    return {}


def _read_config(path: Path, problems: list[str]) -> dict[str, str]:
    try:
        values = read_yaml(_text(path))
        return dict(_flatten(values, "", 4)) if isinstance(values, dict) else {}
    except UserError as error:
        problems.append(f"config.yaml is damaged: {error}")
        return {}


def _flatten(section: dict[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, str]]:
    for key, value in list(section.items())[:200]:
        name = printable(prefix + str(key)[:80])
        if isinstance(value, dict) and depth:
            yield from _flatten(value, f"{name}.", depth - 1)
        elif isinstance(value, list):
            yield name, ", ".join(_scalar(item) for item in value[:64])
        else:
            yield name, _scalar(value)


def _scalar(value: Any) -> str:
    """A value as one short text."""
    if value is None or isinstance(value, str | int | float):
        text = (
            "none"
            if value is None
            else repr(value)
            if isinstance(value, str) and value != value.strip()
            else str(value)
        )
        return printable(text[:200])
    return f"({type(value).__name__})"


def _read_metrics(path: Path, problems: list[str]) -> Columns:
    """The columns that are ours; what follows the last line end is still being written, and left for later."""
    header, _, body = _text(path).partition("\n")
    names = [name.strip() for name in header.split(",")]
    rows = [line.split(",") for line in body.split("\n")[:-1]]
    whole = [row for row in rows if len(row) == len(names)]
    raw: Iterable[tuple[str, ...]] = zip(*whole, strict=True)
    try:
        columns = {name: _numbers(cells) for name, cells in zip(names, raw, strict=False)}
    except ValueError:
        whole = [row for row in whole if _is_numeric(row)]
        columns = {name: _numbers(cells) for name, cells in zip(names, zip(*whole, strict=True), strict=False)}
    if len(rows) > len(whole):
        problems.append(f"{len(rows) - len(whole)} damaged rows of metrics.csv left out")
    if names[0] and not set(AXES) <= set(names):
        problems.append("metrics.csv lacks " + ", ".join(axis for axis in AXES if axis not in names))
    columns = {name: columns.get(name, [NAN] * len(whole)) for name in AXES + VALUES}
    problems += _not_numbers(columns["step"], dict(zip(names, zip(*whole, strict=True), strict=False)))
    return _in_order(columns)


def _numbers(cells: Iterable[str]) -> list[float]:
    return [float(cell) if cell else NAN for cell in cells]


def _is_numeric(row: list[str]) -> bool:
    try:
        _numbers(row)
    except ValueError:
        return False
    return True


def _not_numbers(steps: list[float], cells: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """Where a loss stopped being a number: written as nan or inf, unlike a cell that is empty."""
    for name in ("train/loss", *LOSSES):
        for step, cell in zip(steps, cells.get(name, ()), strict=False):
            if cell and not math.isfinite(float(cell)):
                yield f"{name} is {cell.strip()} at step {step:g}"
                break


def _in_order(columns: Columns) -> Columns:
    """Rows by step, and only those that have one."""
    steps = columns["step"]
    order = sorted((i for i, step in enumerate(steps) if math.isfinite(step)), key=steps.__getitem__)
    if order == list(range(len(steps))):
        return columns
    return {name: [values[i] for i in order] for name, values in columns.items()}


def _read_samples(path: Path) -> list[Sample]:
    samples = {}
    for line in _text(path).split("\n")[-5000:]:
        with suppress(ValueError, RecursionError, TypeError, KeyError):
            record = json.loads(line)
            step, text = record["step"], record["text"]
            if is_number(step) and isinstance(step, int) and isinstance(text, str):
                samples[step] = Sample(step, (str(record.get("prompt", "")) + text)[:4000])
    return [samples[step] for step in sorted(samples)]
