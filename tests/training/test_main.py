"""train.py from end to end: what a run leaves, resuming to the bit, interruption, divergence, bad input."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lm import load
from lm.files import UserError
from lm.runs.checkpoint import read_checkpoint
from lm.runs.folder import Run
from lm.runs.metrics import AXES, VALUES
from tests.commands import ROOT, train
from tests.conftest import SMALL


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def without_times(run: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k not in ("train_seconds", "chars_per_second")} for row in rows(run)]


def assert_same_end(a: Path, b: Path) -> None:
    """Weights, optimiser and metrics, to the bit."""
    first, second = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (a, b))
    assert first["global_step"] == second["global_step"]
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (first, second)]
    for index, state in states[0].items():
        assert all(torch.equal(value, states[1][index][name]) for name, value in state.items())
    assert without_times(a) == without_times(b)
    assert (a / "samples.jsonl").read_text() == (b / "samples.jsonl").read_text()


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
    assert tuple(table[0]) == AXES + VALUES
    assert [int(r["step"]) for r in table if r["train/loss"]] == [10, 20, 30, 40, 45]
    assert [int(r["step"]) for r in table if r["val/loss"]] == [20, 40, 45]
    assert all(int(r["chars"]) == int(r["step"]) * 4 * 32 for r in table)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["step"] == 45
    assert summary["best"]["val/loss"] < 4.2 and summary["peak_memory_mb"] > 100
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [s["step"] for s in samples] == [20, 40, 45] and all(len(s["text"]) == 20 for s in samples)
    screen = capsys.readouterr().err
    for text in ("parameters", "tests" if "tests" in str(run) else str(run), "best validation loss", "generate.py"):
        assert text in screen
    model, tokenizer = load(run)
    assert not model.training and len(tokenizer) == model.head.weight.shape[0]


def test_the_loss_in_metrics_is_that_of_evaluate(run_train, corpus):
    from lm.config.options import DataConfig
    from lm.corpora.corpus import load_corpus
    from lm.training.loss import streaming_loss, windowed_loss

    run = run_train("a", "--trainer.max_steps", "30")
    model, _ = load(run / "checkpoints" / "last.ckpt")
    ids = load_corpus(DataConfig(corpus=str(corpus), context=32)).validation
    last = rows(run)[-1]
    assert float(last["val/loss"]) == pytest.approx(windowed_loss(model, ids, 32), abs=1e-5)
    assert float(last["val/loss_streaming"]) == pytest.approx(streaming_loss(model, ids), abs=1e-5)
    assert float(last["val/perplexity"]) == pytest.approx(2.718281828 ** float(last["val/loss"]), rel=1e-4)


def test_the_same_seed_gives_the_same_run_and_another_another(run_train):
    options = ("--trainer.max_steps", "20", "--model.dropout", "0.2")
    a, b = run_train("a", *options), run_train("b", *options)
    assert_same_end(a, b)
    assert without_times(run_train("c", *options, "--seed", "2")) != without_times(a)


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
    losses = [float(r["train/loss"]) for r in rows(run) if r["train/loss"]]
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")  # torch's compiler warns of torch
def test_a_compiled_model_trains_alike(run_train):
    options = ("--trainer.max_steps", "8", "--eval.sample_chars", "0")
    plain, compiled = run_train("plain", *options), run_train("compiled", *options, "--model.compile", "true")
    for a, b in zip(rows(plain), rows(compiled), strict=True):
        assert float(a["train/loss"] or 0) == pytest.approx(float(b["train/loss"] or 0), abs=1e-4)
    assert load(compiled)[0].state_dict().keys() == load(plain)[0].state_dict().keys()


def test_accumulation_and_streams_train(run_train):
    whole = run_train("whole", "--trainer.max_steps", "12")
    parts = run_train("parts", "--trainer.max_steps", "12", "--trainer.accumulate", "2")
    for a, b in zip(rows(whole), rows(parts), strict=True):
        assert a["step"] == b["step"]
        assert float(a["val/loss"] or 0) == pytest.approx(float(b["val/loss"] or 0), abs=1e-3)
        assert float(a["train/loss"] or 0) == pytest.approx(float(b["train/loss"] or 0), abs=1e-3)
    streamed = run_train("streamed", "--trainer.max_steps", "40", "--data.sampling", "streams")
    assert float(rows(streamed)[-1]["val/loss_streaming"]) < 4


def test_a_budget_in_minutes_ends_on_the_clock(run_train):
    run = run_train("clock", "--trainer.max_minutes", "0.03", "--eval.every", "10000")
    last = rows(run)[-1]
    assert 1.8 <= float(last["train_seconds"]) < 10 and last["val/loss"]
    learning_rates = [float(r["lr"]) for r in rows(run) if r["lr"]]
    assert learning_rates[-1] < 0.2 * max(learning_rates)


def start(name: str, tmp_path: Path, corpus: Path, *options: str) -> subprocess.Popen:
    """train.py in a process of its own."""
    argv = [*SMALL, "--data.corpus", str(corpus), "--runs", str(tmp_path), "--name", name, *options]
    return subprocess.Popen([sys.executable, "train.py", *argv], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_for_step(run: Path, step: int) -> None:
    for _ in range(6000):
        if (run / "metrics.csv").exists() and any(int(row["step"] or 0) >= step for row in rows(run)):
            return
        time.sleep(0.05)
    raise AssertionError(f"{run} did not reach step {step}")


EXACT = ("--trainer.max_steps", "200", "--eval.every", "40", "--log.every", "7", "--model.dropout", "0.1")


@pytest.mark.parametrize(
    "extra", [(), ("--data.sampling", "streams", "--trainer.accumulate", "2")], ids=["windows", "streams"]
)
def test_killed_and_resumed_equals_never_killed(run_train, tmp_path, corpus, extra):
    process = start("killed", tmp_path, corpus, *EXACT, *extra)
    wait_for_step(tmp_path / "killed", 90)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert int(rows(tmp_path / "killed")[-1]["step"]) < 200
    assert train(["--resume", "killed", "--runs", str(tmp_path)]) == 0
    assert_same_end(tmp_path / "killed", run_train("whole", *EXACT, *extra))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on_to_the_same_end(run_train, tmp_path, corpus, number):
    process = start("stopped", tmp_path, corpus, *EXACT)
    wait_for_step(tmp_path / "stopped", 50)
    process.send_signal(number)
    _, screen = process.communicate(timeout=300)
    assert process.returncode == 130 and "python train.py --resume" in screen and "Traceback" not in screen
    summary = Run(tmp_path / "stopped").summary()
    assert summary["status"] == "interrupted" and 50 <= summary["step"] < 200
    assert train(["--resume", str(tmp_path / "stopped")]) == 0
    assert_same_end(tmp_path / "stopped", run_train("whole", *EXACT))


def test_killed_before_the_first_checkpoint_starts_over(run_train, tmp_path):
    run = run_train("a", "--trainer.max_steps", "20")
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    assert train(["--resume", str(run)]) == 0
    assert_same_end(run, run_train("b", "--trainer.max_steps", "20"))


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(run_train, capsys):
    run = run_train("a", "--trainer.max_steps", "30", "--eval.every", "10")
    last = run / "checkpoints" / "last.ckpt"
    size = last.stat().st_size
    last.unlink()
    last.write_bytes((run / "checkpoints" / "previous.ckpt").read_bytes()[: size // 2])
    capsys.readouterr()
    assert train(["--resume", str(run)]) == 0
    assert "falling back" in capsys.readouterr().err
    assert_same_end(run, run_train("b", "--trainer.max_steps", "30", "--eval.every", "10"))


def test_a_longer_budget_goes_on(run_train):
    run = run_train("a", "--trainer.max_steps", "20")
    assert train(["--resume", str(run), "--trainer.max_steps", "30"]) == 0
    assert rows(run)[-1]["step"] == "30" and Run(run).config().trainer.max_steps == 30


def test_a_finished_run_needs_a_larger_budget(run_train, capsys):
    run = run_train("a", "--trainer.max_steps", "10")
    before = (run / "metrics.csv").read_bytes()
    assert train(["--resume", str(run)]) == 0
    assert "is finished; to go on" in capsys.readouterr().err
    assert (run / "metrics.csv").read_bytes() == before


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


def test_wandb_offline_has_the_same_names(run_train, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    rows_logged = []
    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "log", lambda self, data, *a, **k: rows_logged.append(data))
    argv = [word for word in SMALL if word not in ("--log.wandb", "disabled")]
    assert (
        train(
            [
                *argv,
                "--data.corpus",
                str(tmp_path / "corpus.txt"),
                "--runs",
                str(tmp_path),
                "--name",
                "w",
                "--trainer.max_steps",
                "10",
            ]
        )
        == 0
    )
    keys = set().union(*rows_logged)
    assert {*AXES, *VALUES} - {"val/accuracy"} <= keys and "sample" in keys
    assert list((tmp_path / "w" / "wandb").glob("offline-run-*"))


BAD = {
    ("--data.corpus", "missing.txt"): "no such file",
    ("--data.corpus", "tiny_shakespear"): "did you mean tiny_shakespeare",
    ("--data.context", "100000"): "too few for data.context 100000",
    ("--resume", "nothing"): "no run nothing",
    ("--model.mixer", "attention", "--model.options.expansion", "2"): "not an option of attention",
    ("--model.mixer", "attention", "--model.options.heads", "5"): "5 heads",
    ("--trainer.precision", "16-mixed"): "needs a GPU",
    ("--data.split", "train", "--data.batch_size", "0"): "at least 1",
}


@pytest.mark.parametrize("options", BAD, ids=lambda options: " ".join(options))
def test_a_mistake_gets_one_line_and_leaves_nothing(options, tmp_path, corpus, capsys):
    argv = [*SMALL, "--data.corpus", str(corpus), "--runs", str(tmp_path / "runs"), "--name", "a", *options]
    try:
        code = train(argv)
    except SystemExit as exit:
        code = exit.code
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and BAD[options] in error
    assert not (tmp_path / "runs" / "a").exists()


def test_an_existing_run_is_never_overwritten(run_train, capsys):
    run = run_train("a", "--trainer.max_steps", "2")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    run_train("a", "--trainer.max_steps", "2", code=2)
    assert "exists already" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_checkpoints_are_data(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": {}, "config": "", "characters": "", "evil": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="damaged, or not a checkpoint"):
        load(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()
