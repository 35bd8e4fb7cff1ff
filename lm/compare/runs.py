"""Run folders as plain data. Any file may be missing, half-written or damaged, and no content is trusted."""

import glob
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from lm.config.strict_yaml import read_yaml
from lm.files import UserError, printable, read_bytes
from lm.runs.folder import Run
from lm.runs.metrics import LOSSES, read_rows

NAN = float("nan")
FILES = ("config.yaml", "summary.json", "metrics.csv", "samples.jsonl", "tokenizer.json", "environment.json")
MARKS = FILES[:3]
"""A folder with any of these is a run folder."""
LARGEST = 512 * 2**20
"""Bytes; a larger file is not read."""
HUGE = 1e30
"""Larger numbers are not steps, times or losses."""
NOT_COMPARED = ("name", "seed", "runs", "version")
"""Options in which the runs of one group may differ, beside `log.*`."""

Stamp = tuple[tuple[int, int], ...]


@dataclass
class Sample:
    """A text that a run generated at a step; it begins with the prompt."""

    step: int
    text: str


@dataclass
class RunData:
    """The content of a run folder. Every field may be empty; `problems` lists what could not be read."""

    path: Path
    name: str
    config: dict[str, str] = field(default_factory=dict)
    """the configuration, flat, as text: {"model.width": "128", ...}"""
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, float]] = field(default_factory=list)
    """of metrics.csv, without empty cells"""
    samples: list[Sample] = field(default_factory=list)
    vocabulary: str = ""
    """digest of the tokenizer"""
    processor: str = ""
    problems: list[str] = field(default_factory=list)
    stamp: Stamp = ()
    """sizes and times of the files that it was read from"""

    def points(self, value: str, axis: str = "step") -> list[tuple[float, float]]:
        """The points (x, y) of a curve in the order of the steps; those that no plot can show are left out."""
        pairs = ((row.get(axis, NAN), row.get(value, NAN)) for row in self.rows)
        return [(x, y) for x, y in pairs if abs(x) < HUGE and abs(y) < HUGE]

    def validations(self, metric: str) -> list[dict[str, float]]:
        """The rows that have this loss."""
        return [row for row in self._validated if abs(row.get(metric, NAN)) < HUGE]

    @cached_property
    def _validated(self) -> list[dict[str, float]]:
        """The rows of validations: a few of many, and needed often."""
        return [row for row in self.rows if "val/loss" in row or "val/loss_streaming" in row]

    @property
    def mixer(self) -> str:
        """The mixer's name, `?` where nothing says it."""
        mixer = self.summary.get("mixer") or self.config.get("model.mixer")
        return printable(mixer[:80]) if isinstance(mixer, str) and mixer else "?"

    @property
    def status(self) -> str:
        """How the run ended, or `running`."""
        status = self.summary.get("status")
        return printable(status[:40]) if isinstance(status, str) else "no summary"

    @property
    def reads_bytes(self) -> bool:
        """Whether it was trained with data.vocabulary bytes. Its numbers are those per character, see `read_run`."""
        return self.config.get("data.vocabulary") == "bytes"

    @property
    def experiment(self) -> tuple[tuple[str, str], ...] | None:
        """The configuration without what may differ between repetitions; None where there is no configuration."""
        return tuple(sorted(item for item in self.config.items() if compared(item[0]))) or None

    def number(self, *keys: str) -> float:
        """A finite number of summary.json, the first of these keys that has one; else NaN."""
        return next((float(value) for key in keys if is_number(value := self.summary.get(key))), NAN)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value of a JSON file is a number below HUGE."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < HUGE


def compared(key: str) -> bool:
    """Whether runs with different values of this option belong to different groups."""
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
        self._known: dict[Path, RunData] = {}

    def read(self) -> list[RunData]:
        """All runs, in the order of the patterns.

        Raises:
            UserError: a pattern matches nothing.
        """
        paths = self._find()
        for path, name in zip(paths, _names(paths), strict=True):
            stamp = _stamp(path)
            if path not in self._known or self._known[path].stamp != stamp:
                self._known[path] = read_run(path)
            self._known[path].name, self._known[path].stamp = name, stamp
        return [self._known[path] for path in paths]

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
        raise UserError("no runs/ here yet; make a run with: char-lm train")
    raise UserError(f"no run folder {pattern}; give run folders, or a folder or glob of them, such as runs/*")


def _children(folder: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(path for path in folder.iterdir() if path.is_dir())
    return []


def _is_run(folder: Path) -> bool:
    return any(_size_and_time(folder / name)[0] >= 0 for name in MARKS)


def _size_and_time(path: Path) -> tuple[int, int]:
    """Of a plain file; (-1, 0) for anything else."""
    with suppress(OSError):
        info = path.stat()
        if stat.S_ISREG(info.st_mode):
            return info.st_size, info.st_mtime_ns
    return -1, 0


def _stamp(folder: Path) -> Stamp:
    return (*(_size_and_time(folder / name) for name in FILES), (Run(folder).is_abandoned, 0))


def _names(paths: list[Path]) -> list[str]:
    """Folder names, each with as many of its parent folders as make all names different."""
    parts = [printable(str(path.resolve())).strip("/").split("/") for path in paths]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return names


def read_run(path: Path) -> RunData:
    """Read one folder. What is missing or damaged stays empty, and is noted in `problems`.

    The numbers of a run that reads bytes become those per character, so that runs of a text are comparable.
    """
    run = RunData(path, path.name)
    run.config = _read_config(path / "config.yaml", run.problems)
    run.summary = _read_json(path / "summary.json")
    if run.summary.get("status") == "running" and Run(path).is_abandoned:
        run.summary["status"] = "stopped"
    run.rows, problems = read_rows(_text(path / "metrics.csv"))
    run.problems += problems
    run.samples = _read_samples(path / "samples.jsonl")
    if tokenizer := _text(path / "tokenizer.json"):
        run.vocabulary = hashlib.sha256(tokenizer.encode()).hexdigest()
    if run.reads_bytes:
        _count_characters(run)
    environment = _read_json(path / "environment.json")
    parts = (run.summary.get("device"), environment.get("processor"))
    known = [printable(part[:80]) for part in parts if isinstance(part, str) and part]
    run.processor = " ".join(known) if len(known) == len(parts) else ""  # a device only after validation
    return run


def _count_characters(run: RunData) -> None:
    """Convert what counts bytes, by the mean length of the characters that are scored."""
    size = run.number("bytes_per_character")
    if not 1 <= size < HUGE:
        run.problems.append("its numbers are per byte, as its summary lacks bytes_per_character")
        return
    for name in ("best", "final"):
        if isinstance(values := run.summary.get(name), dict):
            run.summary[name] = _per_character(values, size)
    run.summary = _per_character(run.summary, size)
    run.rows = [_per_character(row, size) for row in run.rows]


def _per_character(numbers: dict[str, Any], size: float) -> dict[str, Any]:
    """The same with losses of characters of `size` bytes, and counts of characters."""
    factors = dict.fromkeys((*LOSSES, "val/bpc"), size) | dict.fromkeys(("chars", "chars_per_second"), 1 / size)
    found = {name: x * factors[name] for name, x in numbers.items() if name in factors and is_number(x)}
    if "val/bpc" in found:
        found["val/perplexity"] = 2 ** min(1000, found["val/bpc"])
    return numbers | found


def _text(path: Path) -> str:
    with suppress(UserError):
        return read_bytes(path, LARGEST).decode("utf-8", errors="replace")
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
    if value is None:
        return "none"
    if not isinstance(value, str | int | float):
        return f"({type(value).__name__})"
    text = repr(value) if isinstance(value, str) and value != value.strip() else str(value)
    return printable(text[:200])


def _read_samples(path: Path) -> list[Sample]:
    samples = {}
    for line in _text(path).split("\n")[-5000:]:
        with suppress(ValueError, RecursionError, TypeError, KeyError):
            record = json.loads(line)
            step, text = record["step"], record["text"]
            if is_number(step) and isinstance(step, int) and isinstance(text, str):
                samples[step] = Sample(step, (str(record.get("prompt", "")) + text)[:4000])
    return [samples[step] for step in sorted(samples)]
