"""Nothing is lost: kills, damaged files, full disks, short memory, two trainers, changed options."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lm.compare.runs import Reader
from lm.corpora.sources import read_text
from lm.files import DATA
from lm.runs.checkpoint import read_checkpoint
from lm.runs.folder import Run
from lm.training.task import Task
from tests.commands import ROOT, train
from tests.conftest import SMALL
from tests.harness.crash import differences


def crash(*options: str) -> subprocess.CompletedProcess:
    """The harness, in a process of its own: it forks, which one with threads cannot."""
    return subprocess.run(
        [sys.executable, "-m", "tests.harness.crash", *options], cwd=ROOT, capture_output=True, text=True
    )


def test_a_few_kills():
    done = crash("--kills", "3", "--own", "0", "--calls", "2")
    assert done.returncode == 0, done.stderr
    assert "5 kills" in done.stdout and "the same end, to the bit" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("options", ["--kills 30", "--kills 10 --streams", "--kills 0 --calls all"])
def test_many_kills(options):
    done = crash(*options.split())
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- a run of 18 of 24 steps, to be damaged


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
    (folder / "corpus.txt").write_text(read_text(DATA / "tiny_shakespeare.txt.xz")[:12_000], encoding="utf-8")
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


@pytest.mark.parametrize("by", [1.0, 0.999, 0.5, 1, 300], ids=lambda by: f"shorter by {by}")
def test_a_shortened_checkpoint_falls_back_to_the_one_before(cut, capsys, by):
    shorten(cut.path / "checkpoints" / "last.ckpt", by)
    assert cut.comes_to_the_same_end()
    screen = capsys.readouterr().err
    assert "last.ckpt: damaged" in screen and "falling back to previous.ckpt, step 12" in screen


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_a_flipped_bit_in_a_checkpoint_is_noticed(cut, capsys, place):
    path = cut.path / "checkpoints" / "last.ckpt"
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
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


def test_a_start_killed_before_it_wrote_anything_does_not_hold_the_name(run_train, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".lock").touch()
    (tmp_path / "a" / ".config.yaml.part").write_text("na")
    run = run_train("a", "--trainer.max_steps", "2")
    assert not list(run.rglob("*.part"))


# ---------------------------------------------------------------- signals


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
    assert "go on with it: python train.py --resume" in capsys.readouterr().err
    assert read_checkpoint(cut.path / "checkpoints" / "last.ckpt")["global_step"] == 18
    assert cut.comes_to_the_same_end()


def test_ctrl_c_before_training_leaves_nothing(tmp_path, monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lm.corpora.corpus.load_corpus", interrupted)
    assert train(["--runs", str(tmp_path), "--name", "a"]) == 130
    assert capsys.readouterr().err == "interrupted\n" and not list(tmp_path.iterdir())


# ---------------------------------------------------------------- resources


@contextmanager
def file_size_limit(size: int):
    """A disk that takes no file larger than this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("size", "name"), [(200_000, "last.ckpt"), (1_000, "tokenizer.json"), (100, "config.yaml")])
def test_a_full_disk_leaves_the_checkpoint_before(cut, capsys, size, name):
    checkpoint = (cut.path / "checkpoints" / "last.ckpt").read_bytes()
    capsys.readouterr()
    with file_size_limit(size):
        assert cut.resume() == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("train.py: error: cannot write") and f"{name}: {os.strerror(errno.EFBIG)}" in error
    if name == "last.ckpt":
        assert f"Then go on with: python train.py --resume {cut.path}" in error
    assert (cut.path / "checkpoints" / "last.ckpt").read_bytes() == checkpoint
    assert cut.comes_to_the_same_end()


def test_a_row_that_the_disk_does_not_take(cut, capsys):
    with file_size_limit((cut.path / "metrics.csv").stat().st_size + 10):
        run = Run(cut.path)
        with pytest.raises(train.UserError, match=r"cannot write .*metrics.csv: File too large"):
            run.append_metrics({"step": 21, "chars": 2688, "train_seconds": 1.0, "flops": 1.0})
    assert cut.comes_to_the_same_end()


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


def test_two_trainers_of_one_run(cut, capsys):
    """Locks of one process keep each other out as those of two do."""
    first = Run(cut.path)
    first.lock()
    first.update_summary(status="running")
    before = {path: path.read_bytes() for path in cut.path.rglob("*") if path.is_file()}
    reader = Reader([str(cut.path)])
    assert reader.read()[0].status == "running"
    assert cut.resume() == 2
    assert f"is being trained by process {os.getpid()} of " in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in cut.path.rglob("*") if path.is_file()}
    first.unlock()  # as the death of the process does
    assert reader.read()[0].status == "stopped"
    assert cut.comes_to_the_same_end()
    assert reader.read()[0].status == "finished"


def test_two_that_start_the_same_run(run_train, capsys, monkeypatch):
    """The second sees no run when it looks for the name, and the first's when it has the lock."""
    run = run_train("a", "--trainer.max_steps", "2")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    taken, looks = Run.taken.fget, []
    monkeypatch.setattr(Run, "taken", property(lambda self: taken(self) if looks else looks.append(1)))
    run_train("a", "--trainer.max_steps", "2", code=2)
    assert "exists already" in capsys.readouterr().err
    assert all(path.read_bytes() == content for path, content in before.items())


REMEDY = "out of memory: lower data.batch_size, data.context or model.width, or raise trainer.accumulate"


def test_a_model_that_does_not_fit_leaves_nothing(run_train, tmp_path, capsys):
    run_train("a", "--model.width", "65536", "--model.mlp_expansion", "100", code=2)  # a matrix of 1.7 TB
    assert REMEDY in capsys.readouterr().err and not (tmp_path / "a").exists()


def allocate_too_much(*_):
    return torch.empty(10**15)


def refuse_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def exhaust_python(*_):
    raise MemoryError


@pytest.mark.parametrize("fail", [allocate_too_much, refuse_memory, exhaust_python])
def test_out_of_memory_names_what_to_lower(cut, capsys, monkeypatch, fail):
    monkeypatch.setattr(Task, "training_step", fail)
    assert cut.resume() == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert REMEDY in error and "--resume" in error
    monkeypatch.undo()
    assert cut.comes_to_the_same_end()


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


def test_a_budget_that_is_used_up_already_is_refused(cut, capsys):
    assert train(["--resume", str(cut.path), "--trainer.max_steps", "5"]) == 2
    error = capsys.readouterr().err
    assert "is at step 18 already" in error and "larger" in error and error.count("\n") == 1
    assert Run(cut.path).config().trainer.max_steps == 18


# ---------------------------------------------------------------- changed options


@pytest.mark.parametrize("option", ["optim.lr 0.5", "seed 2", "data.batch_size 8", "model.dropout 0", "eval.every 5"])
def test_a_changed_option_is_refused(cut, capsys, option):
    name, value = option.split()
    before = {path: path.read_bytes() for path in cut.path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert cut.resume(f"--{name}", value) == 2
    error = capsys.readouterr().err
    assert f"error: {name} is " in error and "--allow_changes" in error and error.count("\n") == 1
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize("option", ["model.width 64", "optim.name adamw", "data.sampling streams", "model.mixer gru"])
def test_what_cannot_change_is_refused_in_any_case(cut, capsys, option):
    name, value = option.split()
    assert cut.resume(f"--{name}", value, "--allow_changes") == 2
    error = capsys.readouterr().err
    assert f"error: {name} is " in error and "cannot change on resuming" in error


def test_a_corpus_that_was_edited_is_refused(cut, capsys):
    """With the same characters, so that its ids alone tell."""
    corpus = Path(Run(cut.path).config().data.corpus)
    text = corpus.read_text(encoding="utf-8")
    try:
        corpus.write_text(text.replace("the", "eht"), encoding="utf-8")
        (cut.path / "environment.json").write_text("{")  # the checkpoint knows as well
        assert cut.resume() == 2
        error = capsys.readouterr().err
        assert "is no longer the text that" in error and "--allow_changes" in error and error.count("\n") == 1
        assert cut.resume("--allow_changes") == 0
        (note,) = json.loads((cut.path / "environment.json").read_text())["resumed"]
        assert [*note["changed"]] == ["trainer.max_steps", "text of data.corpus"]
        assert train(["--resume", str(cut.path), "--trainer.max_steps", "25"]) == 0  # it is the known text now
    finally:
        corpus.write_text(text, encoding="utf-8")
    assert "state_dict of last.ckpt" in differences(cut.path, cut.whole)


def test_an_accepted_change_takes_effect_and_is_noted(cut):
    assert cut.resume("--optim.muon_lr", "0.001", "--optim.weight_decay", "0.3", "--allow_changes") == 0
    groups = read_checkpoint(cut.path / "checkpoints" / "last.ckpt")["optimizer_states"][0]["param_groups"]
    muon = next(group for group in groups if group["algorithm"] == "muon")
    assert muon["peak_lr"] == 0.001 and muon["lr"] == pytest.approx(0.001 * 24 / 50) and muon["weight_decay"] == 0.3
    assert Run(cut.path).config().optim.muon_lr == 0.001
    (note,) = json.loads((cut.path / "environment.json").read_text())["resumed"]
    changed = {"trainer.max_steps": [18, 24], "optim.muon_lr": [0.02, 0.001], "optim.weight_decay": [0.1, 0.3]}
    assert note["step"] == 18 and note["changed"] == changed and "torch" in note["packages"]
    assert "state_dict of last.ckpt" in differences(cut.path, cut.whole)
