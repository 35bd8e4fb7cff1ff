"""Resuming: what may change, the budget, the text, two trainers at once."""

import json
import os
import shutil
from pathlib import Path

import pytest

from lm.compare.runs import Reader
from lm.runs.checkpoint import read_checkpoint
from lm.runs.folder import Run
from tests.commands import train
from tests.harness.crash import differences
from tests.training.conftest import rows


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


def test_a_longer_budget_goes_on(run_train):
    run = run_train("a", "--trainer.max_steps", "20")
    assert train(["--resume", str(run), "--trainer.max_steps", "30"]) == 0
    assert rows(run)[-1]["step"] == 30 and Run(run).config().trainer.max_steps == 30


def test_a_finished_run_needs_a_larger_budget(run_train, capsys):
    run = run_train("a", "--trainer.max_steps", "10")
    before = (run / "metrics.csv").read_bytes()
    assert train(["--resume", str(run)]) == 0
    assert "is finished; to go on" in capsys.readouterr().err
    assert (run / "metrics.csv").read_bytes() == before


def test_a_run_without_checkpoints(cut, capsys):
    """A finished one is left as it is; one that ended before its first checkpoint starts again, and says so."""
    shutil.rmtree(cut.path / "checkpoints")
    before = (cut.path / "metrics.csv").read_bytes()
    assert cut.resume() == 2
    assert "is finished, but has no checkpoint to go on from" in capsys.readouterr().err
    assert (cut.path / "metrics.csv").read_bytes() == before
    Run(cut.path).update_summary(status="running")
    assert cut.comes_to_the_same_end()
    assert "has no checkpoint yet: it starts from step 0" in capsys.readouterr().err


def test_half_written_files_are_removed_on_resuming_a_finished_run(run_train):
    run = run_train("a", "--trainer.max_steps", "2")
    for part in (run / ".summary.json.1-abc.part", run / "checkpoints" / ".last.ckpt.1-abc.part"):
        part.write_text("half")
    assert train(["--runs", str(run.parent), "--resume", "a"]) == 0
    assert not list(run.rglob("*.part"))


def test_a_budget_that_is_used_up_already_is_refused(cut, capsys):
    assert train(["--resume", str(cut.path), "--trainer.max_steps", "5"]) == 2
    error = capsys.readouterr().err
    assert "is at step 18 already" in error and "larger" in error and error.count("\n") == 1
    assert Run(cut.path).config().trainer.max_steps == 18


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


def test_changed_options_are_checked_together_with_those_of_the_run(run_train):
    """A batch of 10 can be cut into 5 parts, though the default of 12 cannot."""
    run = run_train("a", "--data.batch_size", "10", "--trainer.max_steps", "2")
    argv = ["--resume", str(run), "--trainer.max_steps", "4", "--trainer.accumulate", "5", "--allow_changes"]
    assert train(argv) == 0
    assert Run(run).config().trainer.accumulate == 5 and rows(run)[-1]["step"] == 4
