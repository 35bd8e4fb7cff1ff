"""`char-lm train` from end to end: what a run leaves, what it prints, and when it refuses to start."""

import json
import re

import pytest

from lm import load
from lm.runs.folder import Run
from lm.runs.metrics import AXES, VALUES
from tests.commands import train
from tests.conftest import SMALL
from tests.harness.crash import differences, metrics
from tests.training.conftest import rows


def test_what_a_run_leaves(run_train, capsys):
    run = run_train("a", "--trainer.max_steps", "45", "--eval.every", "20", "--log.every", "10")
    assert sorted(p.name for p in run.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "environment.json",
        "metrics.csv",
        "samples.jsonl",
        "summary.json",
        "tokenizer.json",
    ]
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    table = rows(run)
    assert (run / "metrics.csv").read_text().startswith(",".join(AXES + VALUES) + "\n")
    assert [r["step"] for r in table if "train/loss" in r] == [10, 20, 30, 40, 45]
    assert [r["step"] for r in table if "val/loss" in r] == [20, 40, 45]
    assert all(r["chars"] == r["step"] * 4 * 32 for r in table)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["step"] == 45
    assert summary["best"]["val/loss"] < 4.2 and summary["peak_memory_mb"] > 100
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [s["step"] for s in samples] == [20, 40, 45] and all(len(s["text"]) == 20 for s in samples)
    screen = capsys.readouterr().err
    for text in ("parameters", str(run), "best validation loss", "char-lm generate"):
        assert text in screen
    model, tokenizer = load(run)
    assert not model.training and len(tokenizer) == model.head.weight.shape[0]


def test_the_same_seed_gives_the_same_run_and_another_another(run_train):
    options = ("--trainer.max_steps", "20", "--model.dropout", "0.2")
    a, b = run_train("a", *options), run_train("b", *options)
    assert differences(a, b) == []
    assert metrics(run_train("c", *options, "--seed", "2")) != metrics(a)


@pytest.mark.parametrize("mixer", ["mingru", "minlstm", "attention", "[mingru,attention]"])
@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_every_mixer_trains(run_train, mixer, precision):
    run = run_train(
        "m",
        "--model.mixer",
        mixer,
        "--trainer.precision",
        precision,
        "--trainer.max_steps",
        "40",
        "--optim.warmup_steps",
        "5",
    )
    losses = [row["train/loss"] for row in rows(run) if "train/loss" in row]
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")  # torch's compiler warns of torch
def test_a_compiled_model_trains_alike(run_train):
    options = ("--trainer.max_steps", "8", "--eval.sample_chars", "0")
    plain, compiled = run_train("plain", *options), run_train("compiled", *options, "--model.compile", "true")
    for a, b in zip(rows(plain), rows(compiled), strict=True):
        assert a.get("train/loss") == pytest.approx(b.get("train/loss"), abs=1e-4)
    assert load(compiled)[0].state_dict().keys() == load(plain)[0].state_dict().keys()


def test_accumulation_and_streams_train(run_train):
    whole = run_train("whole", "--trainer.max_steps", "12")
    parts = run_train("parts", "--trainer.max_steps", "12", "--trainer.accumulate", "2")
    for a, b in zip(rows(whole), rows(parts), strict=True):
        assert a["step"] == b["step"]
        assert a.get("val/loss") == pytest.approx(b.get("val/loss"), abs=1e-3)
        assert a.get("train/loss") == pytest.approx(b.get("train/loss"), abs=1e-3)
    streamed = run_train("streamed", "--trainer.max_steps", "40", "--data.sampling", "streams")
    assert rows(streamed)[-1]["val/loss_streaming"] < 4


def test_a_budget_in_minutes_ends_on_the_clock(run_train):
    run = run_train("clock", "--trainer.max_minutes", "0.03", "--eval.every", "10000")
    last = rows(run)[-1]
    assert 1.8 <= last["train_seconds"] < 10 and "val/loss" in last
    learning_rates = [row["lr"] for row in rows(run) if "lr" in row]
    assert learning_rates[-1] < 0.2 * max(learning_rates)


def test_an_existing_run_is_never_overwritten(run_train, capsys):
    run = run_train("a", "--trainer.max_steps", "2")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    run_train("a", "--trainer.max_steps", "2", code=2)
    assert "exists already" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_two_that_start_the_same_run(run_train, capsys, monkeypatch):
    """The second sees no run when it looks for the name, and the first's when it has the lock."""
    run = run_train("a", "--trainer.max_steps", "2")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    exists, looks = Run.exists.fget, []
    monkeypatch.setattr(Run, "exists", property(lambda self: exists(self) if looks else looks.append(1)))
    run_train("a", "--trainer.max_steps", "2", code=2)
    assert "exists already" in capsys.readouterr().err
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_start_killed_before_it_wrote_anything_does_not_hold_the_name(run_train, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".lock").touch()
    (tmp_path / "a" / ".config.yaml.part").write_text("na")
    run = run_train("a", "--trainer.max_steps", "2")
    assert not list(run.rglob("*.part"))


def test_ctrl_c_before_training_leaves_nothing(tmp_path, monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lm.corpora.corpus.load_corpus", interrupted)
    assert train(["--runs", str(tmp_path), "--name", "a"]) == 130
    assert capsys.readouterr().err == "interrupted\n" and not list(tmp_path.iterdir())


def test_a_run_without_a_name_is_named_by_its_mixers_and_the_time(tmp_path, corpus):
    words = [*SMALL, "--data.corpus", str(corpus), "--runs", str(tmp_path / "runs"), "--trainer.max_steps", "1"]
    assert train([*words, "--model.mixer", "[mingru, attention]", "--model.options.window", "7"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"mingru\+attention-\d{8}-\d{6}", run.name) and Run(run).config().name == run.name
