"""Trainings that are timed: in this process, or by this tree or a checkout of another commit in a process of its own.

The speed is read from metrics.csv in both, which all commits since 0.1.0 write.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lm.config.options import Config, DataConfig
from lm.config.resolve import read_words, resolve
from lm.files import UserError, read_text
from lm.runs.metrics import read_rows

CHARACTERS = DataConfig.batch_size * DataConfig.context
"""Of a step with the default options."""
TREE = Path(__file__).parents[2]
"""The checkout of this program."""


def words_for(folder: Path, name: str, steps: int) -> list[str]:
    """Options of `char-lm train`: so many steps, no validation between them, at least three rows of metrics."""
    every = min(10, max(1, steps // 3))  # the default, unless the run is shorter
    given = {"runs": folder, "name": name, "eval.every": 1_000_000, "trainer.max_steps": steps, "log.every": every}
    return [word for key, value in given.items() for word in (f"--{key}", str(value))]


def config_of(words: list[str], steps: int) -> Config:
    """The configuration that `char-lm train` has from these words, with a budget of so many steps.

    Raises:
        UserError: an option is wrong, or resumes a run, or asks for several devices.
    """
    start, given = read_words(words)
    if start.resume:
        raise UserError("--resume: a new run is timed, which resumes none")
    config = resolve(given | {"trainer.max_steps": steps}, start.config)
    if config.trainer.devices * config.trainer.num_nodes > 1:
        raise UserError("one device is timed: trainer.devices and trainer.num_nodes must be 1")
    return config


def train_here(folder: Path, name: str, steps: int, words: list[str]) -> Path:
    """Run `char-lm train` in this process. Returns the run folder. Raises UserError if it fails."""
    from lm.training.main import main

    if code := main([*words, *words_for(folder, name, steps)]):
        raise UserError(f"char-lm train ended with code {code}")
    return folder / name


def seconds_per_step(run: Path) -> float:
    """Seconds of training per step from metrics.csv, after the rows of the first tenth of the steps.

    Raises:
        UserError: there are no two rows after that.
    """
    rows, _ = read_rows(read_text(run / "metrics.csv"))
    rows = [row for row in rows if "train/loss" in row]
    counted = [row for row in rows if row["step"] >= rows[-1]["step"] / 10]
    if len(counted) < 2:
        raise UserError(f"{run}: too few steps to measure a speed")
    first, last = counted[0], counted[-1]
    return (last["train_seconds"] - first["train_seconds"]) / (last["step"] - first["step"])


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A clone of this checkout at a commit, in a temporary folder. Raises UserError if there is no such commit."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "other")
        _git("clone", "--quiet", "--no-checkout", str(TREE), str(path))
        _git("-C", str(path), "checkout", "--quiet", "--detach", commit)
        yield path


def _git(*words: str) -> None:
    try:
        ran = subprocess.run(["git", *words], capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError("a comparison with another commit needs git, which is not installed") from None
    if ran.returncode:
        raise UserError(f"git: {_last_line(ran.stderr)}")


def train_at(tree: Path, words: list[str], **environment: str) -> None:
    """Run the train.py of a checkout in a process of its own, in the current folder.

    Args:
        tree: the checkout.
        words: options of `char-lm train`.
        environment: variables besides those of this process.

    Raises:
        UserError: it fails; says its last line.
    """
    variables = os.environ | {"PYTHONPATH": str(tree)} | environment
    command = [sys.executable, str(tree / "train.py"), *words]
    ran = subprocess.run(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if ran.returncode:
        raise UserError(f"train.py of {tree} ended with code {ran.returncode}: {_last_line(ran.stderr)}")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]
