"""Weights & Biases and TensorBoard have the rows of metrics.csv under the same names; W&B also the best checkpoint."""

import csv
import sys

import pytest

from lm.config.resolve import parse
from lm.runs.folder import Run
from lm.runs.metrics import AXES, VALUES
from lm.training.trackers import make_loggers
from tests.commands import train
from tests.conftest import SMALL

CPU = ["--trainer.accelerator", "cpu"]


@pytest.fixture
def offline(tmp_path, corpus, monkeypatch):
    """Run `char-lm train` with W&B offline, whose own folder is then `data`; returns the exit code."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    words = [word for word in SMALL if word not in ("--log.wandb", "disabled")]
    words += ["--data.corpus", str(corpus), "--runs", str(tmp_path), "--name", "w", "--trainer.max_steps", "10"]
    return lambda *more: train([*words, *more])


def test_wandb_offline_has_the_same_names(offline, tmp_path, monkeypatch):
    import wandb

    rows_logged, started, init = [], [], wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: started.append(options) or init(**options))
    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "log", lambda self, data, *a, **k: rows_logged.append(data))
    assert offline("--log.project", "p", "--log.group", "g") == 0
    keys = set().union(*rows_logged)
    assert {*AXES, *VALUES} - {"val/accuracy"} <= keys and "sample" in keys
    assert list((tmp_path / "w" / "wandb").glob("offline-run-*"))
    (options,) = started
    assert [options[key] for key in ("project", "group", "name", "id", "mode")] == ["p", "g", "w", "w", "offline"]
    assert options["resume"] is None and options["config"]["model.width"] == 32


def test_the_group_at_wandb_is_the_mixer_unless_it_is_given(tmp_path, monkeypatch):
    import wandb

    started = []

    def init(**options):
        started.append(options)
        raise InterruptedError

    monkeypatch.setattr(wandb, "init", init)
    config = parse([*CPU, "--model.mixer", "lstm", "--log.wandb", "online"])
    with pytest.raises(InterruptedError):
        make_loggers(config, Run(tmp_path))
    assert started[0]["group"] == "lstm" and started[0]["project"] == "char-lm" and started[0]["resume"] == "allow"
    config.log.wandb = "disabled"
    assert make_loggers(config, Run(tmp_path)) == []


def test_without_wandb_there_is_metrics_csv(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert make_loggers(parse(CPU), Run(tmp_path)) == []
    assert "wandb is not installed" in capsys.readouterr().err


@pytest.fixture
def artifacts(monkeypatch):
    """The artifacts of type `model` that are logged, with the other arguments. (Samples are of another type.)"""
    import wandb

    logged, log = [], wandb.sdk.wandb_run.Run.log_artifact

    def log_artifact(self, artifact, **more):
        if artifact.type == "model":
            logged.append((artifact, more))
        return log(self, artifact, **more)

    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "log_artifact", log_artifact)
    return logged


def test_the_best_checkpoint_is_an_artifact(offline, artifacts, tmp_path):
    assert offline("--log.artifacts", "true") == 0
    ((artifact, more),) = artifacts
    assert artifact.name.partition(":")[0] == "w" and more == {"aliases": ["best"]}
    assert artifact.metadata["best"] == Run(tmp_path / "w").summary()["best"]
    (entry,) = artifact.manifest.entries.values()
    best = (tmp_path / "w" / "checkpoints" / "best.ckpt").read_bytes()
    assert (entry.path, entry.size) == ("best.ckpt", len(best))
    kept = [path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert best in kept  # until it is synced


def test_without_the_option_there_is_no_artifact(offline, artifacts):
    assert offline() == 0 and artifacts == []


def test_tensorboard_has_the_rows_of_metrics_csv(run_train, tmp_path, capsys):
    """Also after a resumption from a step before the last row: rows that were logged twice are shown once."""
    pytest.importorskip("tensorboard", reason="needs the package tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ["--trainer.max_steps", "20", "--eval.every", "10", "--log.every", "5", "--log.tensorboard", "true"]
    run = run_train("t", *words)
    (run / "checkpoints" / "last.ckpt").unlink()  # so that it goes on from step 10
    assert train(["--resume", str(run), "--trainer.max_steps", "25"]) == 0
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {*AXES, *VALUES} - {"val/accuracy"} <= set(events.Tags()["scalars"])
    for name in (*AXES, *VALUES):
        written = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        shown = [(event.step, event.value) for event in events.Scalars(name)] if written else []
        assert [step for step, _ in shown] == [step for step, _ in written]
        assert [value for _, value in shown] == pytest.approx([value for _, value in written], rel=1e-4)
    texts = events.Tensors("sample/text_summary")
    assert {text.step for text in texts} == {10, 20, 25}
    assert texts[0].tensor_proto.string_val[0].decode().startswith("    ")
    assert events.Tensors("config/text_summary")


def test_without_tensorboard_nothing_is_started(tmp_path, corpus, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    words = [*SMALL, "--data.corpus", str(corpus), "--runs", str(tmp_path / "runs"), "--log.tensorboard", "true"]
    assert train(words) == 2
    assert "log.tensorboard needs the package tensorboard: pip install tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_artifacts_without_wandb(tmp_path, corpus, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = [*SMALL, "--data.corpus", str(corpus), "--runs", str(tmp_path / "runs"), "--log.artifacts", "true"]
    assert train(words) == 2
    assert "log.artifacts needs Weights & Biases: log.wandb must be offline or online" in capsys.readouterr().err
    assert train([*words, "--log.wandb", "offline"]) == 2
    assert "log.artifacts needs the package wandb: pip install wandb" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
