"""Nothing is lost: kills, damaged files, signals, full disks."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lm.files import UserError
from lm.runs.checkpoint import read_checkpoint
from lm.runs.folder import Run
from lm.training.task import Task
from tests.commands import ROOT, train
from tests.conftest import SMALL
from tests.harness.crash import differences
from tests.training.conftest import file_size_limit, lengthen, no_permission, rows, shorten, start, wait_for_step


def crash(*options: str) -> subprocess.CompletedProcess:
    """The harness, in a process of its own: it forks, which one with threads cannot."""
    return subprocess.run(
        [sys.executable, "-m", "tests.harness.crash", *options], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", ["--kills 30", "--kills 10 --streams", "--kills 0 --calls all"])
def test_kills(options):
    done = crash(*options.split())
    assert done.returncode == 0, done.stderr
    assert "kills in" in done.stdout and "the same end, to the bit" in done.stdout


EXACT = ("--trainer.max_steps", "200", "--eval.every", "40", "--log.every", "7", "--model.dropout", "0.1")


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param("--trainer.precision bf16-mixed", id="bfloat16", marks=pytest.mark.slow),
        pytest.param("--optim.ema 0.9", id="average", marks=pytest.mark.slow),
        pytest.param("--data.sampling streams --trainer.accumulate 2", id="streams"),
    ],
)
def test_killed_and_resumed_equals_never_killed(run_train, tmp_path, corpus, extra):
    extra = extra.split()
    process = start("killed", tmp_path, corpus, *EXACT, *extra)
    wait_for_step(tmp_path / "killed", 90)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert rows(tmp_path / "killed")[-1]["step"] < 200
    assert train(["--resume", "killed", "--runs", str(tmp_path)]) == 0
    assert differences(tmp_path / "killed", run_train("whole", *EXACT, *extra)) == []


def test_killed_before_the_first_checkpoint_starts_over(run_train, tmp_path):
    run = run_train("a", "--trainer.max_steps", "20")
    for file in [*(run / "checkpoints").iterdir(), run / "summary.json"]:
        file.unlink()
    assert train(["--resume", str(run)]) == 0
    assert differences(run, run_train("b", "--trainer.max_steps", "20")) == []


@pytest.mark.parametrize("by", [1.0, 0.999, 0.5, 1, 300], ids=lambda by: f"shorter by {by}")
def test_a_shortened_checkpoint_falls_back_to_the_one_before(cut, capsys, by):
    shorten(cut.path / "checkpoints" / "last.ckpt", by)
    assert cut.comes_to_the_same_end()
    screen = capsys.readouterr().err
    assert "last.ckpt: damaged" in screen and "falling back to previous.ckpt, step 12" in screen


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_flipped_bits_in_a_checkpoint_are_noticed(cut, capsys, place):
    """In more bytes than the gap between two records has, which nobody reads."""
    path = cut.path / "checkpoints" / "last.ckpt"
    data = bytearray(path.read_bytes())
    for i in range(128):
        data[int(place * len(data)) + i] ^= 1
    path.write_bytes(data)
    assert cut.comes_to_the_same_end()
    screen = capsys.readouterr().err
    assert "last.ckpt: damaged" in screen and "falling back to previous.ckpt, step 12" in screen


def test_a_crash_while_it_falls_back(cut, monkeypatch):
    """The damaged checkpoint never takes the name of the one that is whole."""
    shorten(cut.path / "checkpoints" / "last.ckpt", 0.5)
    monkeypatch.setattr("lm.training.checkpoints.save_atomically", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cut.resume()
    monkeypatch.undo()
    assert Run(cut.path).summary()["status"] == "failed"
    assert cut.comes_to_the_same_end()


@pytest.mark.parametrize("name", ["metrics.csv", "samples.jsonl"])
def test_rows_that_a_checkpoint_knows_of_and_are_lost_are_made_again(cut, capsys, name):
    shorten(cut.path / name, 5)
    assert cut.comes_to_the_same_end()
    assert f"{name} has lost rows that last.ckpt knows of; falling back to previous.ckpt" in capsys.readouterr().err


def test_rows_lost_for_good_do_not_lose_the_training(cut, capsys):
    (cut.path / "metrics.csv").write_text("")
    assert cut.resume() == 0
    assert "going on without them from last.ckpt, step 18" in capsys.readouterr().err
    assert "optimizer_states of last.ckpt" not in differences(cut.path, cut.whole)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: lengthen(path / "metrics.csv", "21,2688,0.5"),
        lambda path: lengthen(path / "samples.jsonl", '{"step": 24, "te'),
        lambda path: (path / "summary.json").write_text(""),
        lambda path: (path / "environment.json").write_text("{"),
        lambda path: (path / "environment.json").write_text('{"corpus": 7, "resumed": 5}'),
        lambda path: (path / "tokenizer.json").unlink(),
        lambda path: (path / ".lock").unlink(),
        lambda path: (path / "checkpoints" / ".last.ckpt.part").write_bytes(b"PK"),
        lambda path: (path / "checkpoints" / "best.ckpt").unlink(),
        lambda path: (path / "checkpoints" / "previous.ckpt").write_bytes(b""),
    ],
    ids=[
        "row",
        "sample",
        "summary",
        "environment",
        "strange environment",
        "tokenizer",
        "lock",
        "part",
        "best",
        "previous",
    ],
)
def test_what_a_crash_leaves_half_made_is_made_whole(cut, damage):
    damage(cut.path)
    assert cut.comes_to_the_same_end()


def test_without_any_whole_checkpoint_it_says_so(cut, capsys):
    for path in (cut.path / "checkpoints").iterdir():
        path.write_bytes(b"")
    before = (cut.path / "metrics.csv").read_bytes()
    assert cut.resume() == 2
    assert "no whole checkpoint is left here: start a new run" in capsys.readouterr().err
    assert (cut.path / "metrics.csv").read_bytes() == before


def test_killed_before_the_last_checkpoint_was_named_the_best(cut):
    """The run is finished, so that nothing trains any more that would name it."""
    best, last = (cut.path / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    assert best.samefile(last)
    best.unlink()
    (cut.path / "checkpoints" / "previous.ckpt").rename(best)
    assert train(["--resume", str(cut.path)]) == 0
    assert best.samefile(last)


def test_a_damaged_checkpoint_is_not_named_the_best_of_a_finished_run(cut, capsys):
    best, last = (cut.path / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    whole = best.read_bytes()
    best.unlink()
    best.write_bytes(whole)
    shorten(last, 0.5)
    assert train(["--resume", str(cut.path), "--trainer.max_steps", "12"]) == 2  # as far as previous.ckpt is
    assert best.read_bytes() == whole and "is at step 12 already" in capsys.readouterr().err
    assert cut.comes_to_the_same_end()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_run_goes_on_to_the_same_end(run_train, tmp_path, corpus, number):
    process = start("stopped", tmp_path, corpus, *EXACT)
    wait_for_step(tmp_path / "stopped", 50)
    process.send_signal(number)
    _, screen = process.communicate(timeout=300)
    assert process.returncode == 130 and "char-lm train --resume" in screen and "Traceback" not in screen
    summary = Run(tmp_path / "stopped").summary()
    assert summary["status"] == "interrupted" and 50 <= summary["step"] < 200
    assert train(["--resume", str(tmp_path / "stopped")]) == 0
    assert differences(tmp_path / "stopped", run_train("whole", *EXACT)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_twice_stops_at_once(cut, capsys, monkeypatch, number):
    step = Task.training_step

    def interrupted(self, batch, batch_idx):
        if self.global_step == 20:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Task, "training_step", interrupted)
    assert cut.resume() == 130
    monkeypatch.undo()
    assert "go on with it: char-lm train --resume" in capsys.readouterr().err
    assert read_checkpoint(cut.path / "checkpoints" / "last.ckpt")["global_step"] == 18
    assert cut.comes_to_the_same_end()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("hook", ["training_step", "validation_step"])
def test_a_signal_around_a_validation_saves_after_it(run_train, monkeypatch, number, hook):
    """Lightning's handler of SIGTERM would leave a validation of several batches, and lose the steps before it."""
    method, handlers = getattr(Task, hook), (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    sent = []

    def signalled(self, *arguments):
        if self.global_step == (9 if hook == "training_step" else 10) and not sent:
            sent.append(os.kill(os.getpid(), number))
        return method(self, *arguments)

    monkeypatch.setattr(Task, hook, signalled)
    run = run_train("a", "--trainer.max_steps", "30", "--eval.every", "5", code=130)
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 10 and rows(run)[-1]["val/loss"]
    assert Run(run).summary()["status"] == "interrupted"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_time_in_which_the_process_is_stopped_is_not_counted(run_train, monkeypatch):
    method = Task.training_step

    def continued(self, *arguments):
        if self.global_step == 5:
            self.clock._since -= 1000
            os.kill(os.getpid(), signal.SIGCONT)
        return method(self, *arguments)

    monkeypatch.setattr(Task, "training_step", continued)
    assert Run(run_train("a", "--trainer.max_steps", "10")).summary()["train_seconds"] < 1000


@pytest.mark.parametrize(("size", "name"), [(200_000, "last.ckpt"), (2_000, "tokenizer.json"), (100, "config.yaml")])
def test_a_full_disk_leaves_the_checkpoint_before(cut, capsys, size, name):
    checkpoint = (cut.path / "checkpoints" / "last.ckpt").read_bytes()
    capsys.readouterr()
    with file_size_limit(size):
        assert cut.resume() == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("char-lm train: error: cannot write") and f"{name}: {os.strerror(errno.EFBIG)}" in error
    if name == "last.ckpt":
        assert f"Then go on with: char-lm train --resume {cut.path}" in error
    assert (cut.path / "checkpoints" / "last.ckpt").read_bytes() == checkpoint
    assert cut.comes_to_the_same_end()


def test_a_row_that_the_disk_does_not_take(cut, capsys):
    with file_size_limit((cut.path / "metrics.csv").stat().st_size + 10):
        run = Run(cut.path)
        with pytest.raises(UserError, match=r"cannot write .*metrics.csv: File too large"):
            run.append_metrics({"step": 21, "chars": 2688, "train_seconds": 1.0, "flops": 1.0})
    assert cut.comes_to_the_same_end()


def test_no_permission(cut, tmp_path, originals, capsys):
    for folder in {tmp_path, *tmp_path.parents, originals, *originals.parents} - {Path("/")}:
        if folder.stat().st_uid == os.getuid():
            folder.chmod(folder.stat().st_mode | 0o555)  # nobody may look in
    (cut.path / ".lock").chmod(0o444)
    with no_permission(cut.path):
        assert cut.resume() == 2
    assert (
        "cannot write" in (error := capsys.readouterr().err) and "Permission denied" in error and "\n" not in error[:-1]
    )
    (tmp_path / "runs").mkdir()
    options = [*SMALL, "--data.corpus", str(originals / "corpus.txt"), "--name", "a", "--runs"]
    with no_permission(tmp_path / "runs"):
        assert train([*options, str(tmp_path / "runs")]) == 2
    assert f"cannot write {tmp_path / 'runs' / 'a'}: Permission denied" in capsys.readouterr().err
    assert train([*options, str(originals / "corpus.txt")]) == 2
    assert "Not a directory" in capsys.readouterr().err
    (cut.path / ".lock").chmod(0o644)
    assert cut.comes_to_the_same_end()


@pytest.mark.parametrize("every", ["1", "7"])  # the loss is seen by a row, or first by a validation
def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(run_train, capsys, monkeypatch, every):
    from lm.training.task import Task

    step = Task.training_step

    def broken_from_step_12(self, batch, batch_idx):
        return step(self, batch, batch_idx) * (float("nan") if self.global_step >= 12 else 1.0)

    monkeypatch.setattr(Task, "training_step", broken_from_step_12)
    run = run_train("a", "--trainer.max_steps", "300", "--eval.every", "5", "--log.every", every, code=1)
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 10
    assert Run(run).summary()["status"] == "diverged"
    assert "try a lower --optim.lr" in capsys.readouterr().err
    weights = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(value.isfinite().all() for name, value in weights.items() if name.startswith("model."))


@pytest.mark.parametrize(
    ("loss", "every", "code", "step"), [("nan", "7", 1, 10), ("1", "7", 130, 13), ("1", "1", 130, 13)]
)
def test_a_signal_does_not_save_a_run_that_has_diverged(run_train, monkeypatch, loss, every, code, step):
    """Nor does it take a step for diverged at which the losses have just been logged."""
    training_step = Task.training_step

    def at_step_12(self, batch, batch_idx):
        if self.global_step == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return training_step(self, batch, batch_idx) * (float(loss) if self.global_step == 12 else 1.0)

    monkeypatch.setattr(Task, "training_step", at_step_12)
    run = run_train("a", "--trainer.max_steps", "300", "--eval.every", "5", "--log.every", every, code=code)
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == step
    assert Run(run).summary()["status"] == ("diverged" if code == 1 else "interrupted")
