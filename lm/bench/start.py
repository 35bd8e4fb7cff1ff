"""Seconds until help, the first training step and the first character, each in a process of its own.

Compiled kernels and the corpus are in the cache, except where the name says that kernels are built.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median

from lm.bench import measure, options
from lm.bench.measure import Row
from lm.files import UserError
from lm.runs.folder import Run
from lm.runs.load import PRETRAINED

HELP: tuple[list[str], ...] = ([], ["train"], ["generate"])
HEADER = ("", "seconds")


def run(arguments: options.Start) -> Row:
    """All of them in turns; the first round, which fills the caches of kernels, corpus and system, is not counted."""
    about = measure.heading("Seconds from the start of a process", options.OnDevice(device="cpu"))
    with tempfile.TemporaryDirectory() as folder:
        starts = contenders(Path(folder), arguments.wandb)
        for start in starts.values():
            start()
        rounds = [{name: start() for name, start in starts.items()} for _ in range(arguments.repeat)]
    rows = [{"name": name, "times": [measured[name][0] for measured in rounds]} for name in starts]
    measure.print_table(HEADER, rows, table_row)
    parts = {}
    for name in (name for name in starts if "step" in name):
        stages = [measured[name][1] for measured in rounds]
        parts[name] = [{"name": stage, "times": [each[stage] for each in stages]} for stage in stages[0]]
        measure.print_table((f"{name}: where the time goes", "seconds"), parts[name], table_row)
    return {"conditions": about, "results": rows, "parts": parts}


def contenders(folder: Path, wandb: str) -> dict[str, Callable[[], tuple[float, Row]]]:
    """What is timed, by name: a call returns its seconds and, for trainings, those of each part."""
    calls: dict[str, Callable[[], tuple[float, Row]]] = {}
    for words in HELP:
        calls[" ".join(["char-lm", *words, "--help"])] = lambda words=words: first_output([*words, "--help"])  # type: ignore[misc]
    calls["first step, kernels built"] = lambda: first_step(folder, wandb)
    calls["first step, kernels to build"] = lambda: first_step(folder, wandb, build=True)
    writes = ["generate", str(PRETRAINED), "--chars", "1", "--prompt", "A"]
    calls["first character, kernels built"] = lambda: first_output(writes)
    calls["first character, kernels to build"] = lambda: first_output(writes, build=True)
    return calls


def first_output(words: list[str], build: bool = False) -> tuple[float, Row]:
    """Until a command has printed something."""
    with _cache(build) as environment:
        begin = time.perf_counter()
        process = _start(words, environment)
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - begin
        _finish(process, words)
    return seconds, {}


def first_step(folder: Path, wandb: str, build: bool = False) -> tuple[float, Row]:
    """Until the first row of metrics.csv, which follows the first step."""
    run = Run(Path(tempfile.mkdtemp(dir=folder)) / "a")
    words = ["train", "--runs", str(run.path.parent), "--name", "a", "--log.wandb", wandb, "--log.every", "1"]
    words += ["--trainer.max_steps", "1000", "--trainer.accelerator", "cpu", "--eval.every", "1000"]
    with _cache(build) as environment:
        begin = time.perf_counter()
        process = _start(words, environment)
        while process.poll() is None and not _has_rows(run.path / "metrics.csv"):
            time.sleep(0.005)
        seconds = time.perf_counter() - begin
        process.terminate()  # it writes its summary, without a validation
        _finish(process, words, 130)
    stages = run.summary()["startup"]
    return seconds, {"start Python": seconds - sum(stages.values()), **stages}


def _has_rows(path: Path) -> bool:
    return path.exists() and path.read_bytes().count(b"\n") > 1


@contextlib.contextmanager
def _cache(build: bool) -> Iterator[dict[str, str]]:
    """The environment of a process whose kernels are in the cache or, to build them, in an empty one.

    The corpus is in that too: reading it again is part of the time.
    """
    if not build:
        yield dict(os.environ)
        return
    with tempfile.TemporaryDirectory() as empty:
        yield {**os.environ, "XDG_CACHE_HOME": empty}


def _start(words: list[str], environment: Mapping[str, str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "lm", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def _finish(process: subprocess.Popen, words: list[str], code: int = 0) -> None:
    _, errors = process.communicate()
    if process.returncode != code:
        raise UserError(f"char-lm {' '.join(words)} fails: {errors.decode(errors='replace').strip()[-300:]}")


def table_row(row: Row) -> tuple[str]:
    """Median and spread."""
    return (f"{median(row['times']):.2f} [{min(row['times']):.2f}-{max(row['times']):.2f}]",)
