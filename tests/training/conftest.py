"""Shared fixtures of the tests of training: an interrupted run, limits of the system, training in another process."""

import os
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from lm.corpora.sources import read_text
from lm.files import DATA
from lm.runs.metrics import read_rows
from tests.commands import ROOT, train
from tests.conftest import SMALL
from tests.harness.crash import differences


def rows(run: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv, without empty cells."""
    found, problems = read_rows((run / "metrics.csv").read_text())
    assert not problems
    return found


class Cut:
    """A copy of a run with checkpoints of steps 12 and 18, and the run of 24 steps that it is to become."""

    def __init__(self, path: Path, whole: Path) -> None:
        self.path, self.whole = path, whole

    def resume(self, *options: str) -> int:
        return train(["--resume", str(self.path), "--trainer.max_steps", "24", *options])

    def comes_to_the_same_end(self, *options: str) -> bool:
        return self.resume(*options) == 0 and differences(self.path, self.whole) == []


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A constant learning rate, so that a run of 18 steps is the beginning of one of 24."""
    folder = tmp_path_factory.mktemp("runs")
    many = "".join(map(chr, range(0x400, 0x480)))  # characters, so that tokenizer.json is larger than config.yaml
    (folder / "corpus.txt").write_text(many + read_text(DATA / "tiny_shakespeare.txt.xz")[:12_000], encoding="utf-8")
    options = "--eval.every 6 --log.every 3 --optim.schedule constant --optim.decay 0 --model.dropout 0.1".split()
    for name, steps in (("whole", "24"), ("cut", "18")):
        places = ["--data.corpus", str(folder / "corpus.txt"), "--runs", str(folder), "--name", name]
        assert train([*SMALL, *options, *places, "--trainer.max_steps", steps]) == 0
    return folder


@pytest.fixture
def cut(originals, tmp_path):
    subprocess.run(["cp", "-a", originals / "cut", tmp_path / "cut"], check=True)  # hard links stay links
    return Cut(tmp_path / "cut", originals / "whole")


def shorten(path: Path, by: float) -> None:
    """Cut off so many bytes, or such a share, of a file and of its other names."""
    size = path.stat().st_size
    os.truncate(path, size - (by if isinstance(by, int) else round(by * size)))


def lengthen(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


@contextmanager
def file_size_limit(size: int):
    """A disk that takes no file larger than this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def no_permission(path: Path):
    """What the system lets nobody change. The superuser becomes nobody for a moment."""
    path.chmod(0o555)
    os.seteuid(65534 if os.geteuid() == 0 else os.geteuid())
    try:
        yield
    finally:
        os.seteuid(os.getuid())
        path.chmod(0o755)


def start(name: str, tmp_path: Path, corpus: Path, *options: str) -> subprocess.Popen:
    """train.py in a process of its own."""
    argv = [*SMALL, "--data.corpus", str(corpus), "--runs", str(tmp_path), "--name", name, *options]
    return subprocess.Popen([sys.executable, "train.py", *argv], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_for_step(run: Path, step: int) -> None:
    for _ in range(6000):
        if (run / "metrics.csv").exists() and any(row["step"] >= step for row in rows(run)):
            return
        time.sleep(0.05)
    raise AssertionError(f"{run} did not reach step {step}")
