"""`char-lm bench step --against`: trainings by another commit."""

import json
from pathlib import Path

import pytest

from lm.bench import against, trainings
from tests import commands
from tests.conftest import SMALL


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Trainings take these seconds per step, by side; returns the calls."""
    calls = []
    seconds = {"old": iter([0.5, 0.2, 0.4]), "new": iter([0.1, 0.1, 0.3])}

    def train_once(tree, steps, words):
        side = "new" if tree == trainings.TREE else "old"
        calls.append((side, steps, words))
        return next(seconds[side]), "32-true" if side == "old" else "bf16-mixed"

    monkeypatch.setattr(against, "train_once", train_once)
    return calls


def test_medians_and_their_ratio(bench, fake):
    """Medians of 0.4 s and 0.1 s per step."""
    result, out = bench("step", "--against", "HEAD", "--repeat", "3", "--steps", "40", "--model.width", "64")
    assert [row["times"] for row in result["results"]] == [[0.5, 0.2, 0.4], [0.1, 0.1, 0.3]]
    assert result["ratio"] == pytest.approx(4) and "this tree / HEAD = 4.000 (steps per second)" in out
    assert "threads, precision as below, torch" in out and result["conditions"]["options"]["against"] == "HEAD"
    lines = [line.split() for line in out.splitlines() if line.startswith(("HEAD", "this tree"))]
    assert lines[0] == ["HEAD", "32-true", "2.50", "[2.00-5.00]", "400.0", "[200.0-500.0]"]
    assert lines[1] == ["this", "tree", "bf16-mixed", "10.00", "[3.33-10.00]", "100.0", "[100.0-300.0]"]


def test_both_take_turns_with_their_options(bench, fake):
    options = ["--ours", "--trainer.precision 32", "--theirs", "--model.layers 1", "--model.width", "64"]
    bench("step", "--against", "HEAD", "--repeat", "2", "--steps", "40", *options)
    assert [side for side, *_ in fake] == ["new", "old", "old", "new"]
    ours, theirs = (words for _, _, words in fake[:2])
    assert ours == ["--model.width", "64", "--trainer.precision", "32"]
    assert theirs == ["--model.width", "64", "--model.layers", "1"] and {steps for _, steps, _ in fake} == {40}


def test_mistakes_are_found_before_anything_is_trained(fake, capsys):
    for words in (["--against", "nothing-like-it"], ["--against", "HEAD", "--ours", "--model.widht 3"]):
        assert commands.bench(["step", *words]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert fake == []


def test_a_training_is_read_from_its_run_folder(monkeypatch):
    def train_at(tree, words):
        folder = Path(words[words.index("--runs") + 1], "a")
        folder.mkdir()
        rows = "".join(f"{step},{step / 4},1\n" for step in range(10, 101, 10))
        (folder / "metrics.csv").write_text(f"step,train_seconds,train/loss\n{rows}")
        (folder / "summary.json").write_text(json.dumps({"precision": "32-true"}))
        assert tree == Path("there") and words[:2] == ["--seed", "5"] and words[-2:] == ["--log.wandb", "disabled"]

    monkeypatch.setattr(trainings, "train_at", train_at)
    assert against.train_once(Path("there"), 100, ["--seed", "5"]) == (0.25, "32-true")


@pytest.mark.slow
def test_two_trees_are_timed(bench, corpus):
    result, _ = bench("step", "--against", "HEAD", "--repeat", "1", *SMALL, "--data.corpus", str(corpus))
    assert all(len(row["times"]) == 1 and row["times"][0] > 0 for row in result["results"])
