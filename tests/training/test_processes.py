"""Two processes (gloo, on the CPU) train as one does; the death of one ends the run, which can be resumed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lm.runs.folder import Run
from tests.commands import ROOT
from tests.harness.crash import metrics
from tests.training.conftest import start, wait_for_step

TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
LOSSES = ("train/loss", "val/loss", "val/loss_streaming", "grad_norm")


def finish(process: subprocess.Popen, code: int = 0) -> str:
    """Wait for a training, but not for ever. Returns its screen."""
    try:
        _, screen = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == code, screen
    return screen


def other_rank(process: subprocess.Popen) -> int:
    """The id of the process that this one started for the other device."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = [int(child) for child in children if b"train.py" in Path(f"/proc/{child}/cmdline").read_bytes()]
    assert len(found) == 1
    return found[0]


def assert_gone(pid: int) -> None:
    """The process ends by itself."""
    for _ in range(1200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError(f"process {pid} was left behind")


def assert_same_losses(a: Path, b: Path, tolerance: float = 1e-5) -> None:
    for first, second in zip(metrics(a), metrics(b), strict=True):
        assert first["step"] == second["step"]
        for name in LOSSES:
            assert (first[name] == "") == (second[name] == "")
            assert float(first[name] or 0) == pytest.approx(float(second[name] or 0), abs=tolerance), (name, first)


def test_two_processes_have_the_losses_of_one(run_train, tmp_path, corpus):
    options = ("--trainer.max_steps", "12", "--eval.every", "6", "--log.every", "2")
    screen = finish(start("two", tmp_path, corpus, *options, *TWO))
    assert "device   2 x cpu" in screen and screen.count("finished after 12 steps") == 1
    assert_same_losses(tmp_path / "two", run_train("one", *options))
    assert {path.name for path in tmp_path.iterdir()} == {"corpus.txt", "one", "two"}


LONG = ("--trainer.max_steps", "2000", "--eval.every", "20", "--log.every", "10", "--eval.sample_chars", "0")
SHORT = ("--trainer.max_steps", "100")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the other process in /proc")
@pytest.mark.parametrize("victim", ["first", "other"])
def test_the_death_of_one_ends_the_run_and_it_can_be_resumed(tmp_path, corpus, victim):
    process = start("killed", tmp_path, corpus, *LONG, *TWO)
    wait_for_step(tmp_path / "killed", 50)
    other = other_rank(process)
    os.kill(process.pid if victim == "first" else other, signal.SIGKILL)
    _, screen = process.communicate(timeout=300)
    assert process.returncode != 0
    if victim == "other":
        assert process.returncode == -signal.SIGKILL or "another process of this training has died" in screen
    assert_gone(other)
    saved = Run(tmp_path / "killed").newest_checkpoint()
    assert saved is not None and saved.step >= 40
    step = saved.step + 40
    argv = ["--resume", str(tmp_path / "killed"), "--trainer.max_steps", str(step)]
    finish(subprocess.Popen([sys.executable, "train.py", *argv], cwd=ROOT, stderr=subprocess.PIPE, text=True))
    assert Run(tmp_path / "killed").summary()["step"] == step
    steps = [int(row["step"]) for row in metrics(tmp_path / "killed") if row["train/loss"]]
    assert steps == list(range(10, step + 1, 10))


@pytest.mark.slow
def test_ctrl_c_stops_both_after_the_same_step(run_train, tmp_path, corpus):
    options = ("--trainer.max_steps", "200", "--eval.every", "40", "--log.every", "10")
    process = start("stopped", tmp_path, corpus, *options, *TWO)
    wait_for_step(tmp_path / "stopped", 50)
    process.send_signal(signal.SIGINT)  # to the first alone: the other must follow
    assert "interrupted after" in finish(process, 130)
    argv = ["--resume", str(tmp_path / "stopped")]
    finish(subprocess.Popen([sys.executable, "train.py", *argv], cwd=ROOT, stderr=subprocess.PIPE, text=True))
    screen = finish(start("whole", tmp_path, corpus, *options, *TWO))
    assert "deprecated" not in screen and "Warning" not in screen, screen
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


@pytest.mark.slow
def test_an_error_of_the_other_process_ends_the_run(tmp_path, corpus):
    """Its memory is limited, so that it fails before the two have even met."""
    process = start("failing", tmp_path, corpus, *LONG, *TWO)
    for _ in range(600):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if found := [c for c in children if b"train.py" in Path(f"/proc/{c}/cmdline").read_bytes()]:
            break
        time.sleep(0.05)
    os.kill(int(found[0]), signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode != 0
