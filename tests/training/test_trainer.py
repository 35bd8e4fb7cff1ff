"""Lightning's trainer gets the options of the run; devices that are not here are refused; Weights & Biases."""

import pytest
import torch

from lm.config.options import Config, TrainerConfig
from lm.config.resolve import parse
from lm.files import UserError
from lm.runs.folder import Run
from lm.runs.metrics import AXES, VALUES
from lm.training.trainer import make_loggers, make_trainer, resolve_precision
from tests.commands import train
from tests.conftest import SMALL

CPU = "--trainer.accelerator cpu"


def test_the_trainer_has_the_options_of_the_run(tmp_path):
    options = "--trainer.accumulate 3 --eval.every 7 --trainer.devices 2 --trainer.num_nodes 2 --trainer.strategy ddp"
    trainer = make_trainer(parse([*CPU.split(), *options.split()]), Run(tmp_path / "a"), "bf16-mixed", [])
    assert trainer.accumulate_grad_batches == 3 and trainer.val_check_interval == 21
    assert trainer.num_devices == 2 and trainer.num_nodes == 2 and trainer.world_size == 4
    assert trainer.precision == "bf16-mixed" and type(trainer.strategy).__name__ == "DDPStrategy"
    assert trainer.strategy.root_device.type == "cpu" and not trainer.loggers
    assert trainer.max_epochs == -1 and trainer.max_steps == -1  # the recorder ends training
    assert trainer.check_val_every_n_epoch is None and trainer.num_sanity_val_steps == 0


@pytest.mark.parametrize("options", ["--trainer.strategy magic", "--trainer.accelerator gpu --trainer.devices 12"])
def test_what_this_machine_does_not_have_is_refused(options, tmp_path):
    with pytest.raises(UserError, match=r"^trainer: .* cannot be had here: .*; the default, auto, can$"):
        make_trainer(parse([*CPU.split(), *options.split()]), Run(tmp_path / "a"), 32, [])


@pytest.mark.parametrize(
    ("asked", "accelerator", "cuda", "bfloat16", "expected"),
    [
        ("auto", "cpu", True, True, 32),
        ("auto", "auto", False, False, 32),
        ("auto", "auto", True, True, "bf16-mixed"),
        ("auto", "gpu", True, False, 32),
        (32, "auto", True, True, 32),
        ("bf16-mixed", "cpu", False, False, "bf16-mixed"),
        ("16-mixed", "gpu", True, True, "16-mixed"),
        ("16-mixed", "auto", False, False, None),
        ("16-mixed", "cpu", True, True, None),
    ],
)
def test_precision_is_the_best_of_the_device(asked, accelerator, cuda, bfloat16, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    config = Config(trainer=TrainerConfig(precision=asked, accelerator=accelerator))
    if expected is None:
        with pytest.raises(UserError, match="16-mixed needs a GPU"):
            resolve_precision(config)
    else:
        assert resolve_precision(config) == expected


def test_wandb_offline_has_the_same_names(run_train, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    rows_logged, started, init = [], [], wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: started.append(options) or init(**options))
    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "log", lambda self, data, *a, **k: rows_logged.append(data))
    argv = [word for word in SMALL if word not in ("--log.wandb", "disabled")]
    argv += ["--data.corpus", str(tmp_path / "corpus.txt"), "--runs", str(tmp_path), "--name", "w"]
    assert train([*argv, "--trainer.max_steps", "10", "--log.project", "p", "--log.group", "g"]) == 0
    keys = set().union(*rows_logged)
    assert {*AXES, *VALUES} - {"val/accuracy"} <= keys and "sample" in keys
    assert list((tmp_path / "w" / "wandb").glob("offline-run-*"))
    (options,) = started
    assert [options[key] for key in ("project", "group", "name", "id", "mode")] == ["p", "g", "w", "w", "offline"]
    assert options["resume"] is None and options["config"]["model.width"] == 32


def test_the_group_at_wandb_is_the_mixer_unless_it_is_given(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    started = []

    def init(**options):
        started.append(options)
        raise InterruptedError

    monkeypatch.setattr(wandb, "init", init)
    config = parse([*CPU.split(), "--model.mixer", "lstm", "--log.wandb", "online"])
    with pytest.raises(InterruptedError):
        make_loggers(config, Run(tmp_path))
    assert started[0]["group"] == "lstm" and started[0]["project"] == "char-lm" and started[0]["resume"] == "allow"
    config.log.wandb = "disabled"
    assert make_loggers(config, Run(tmp_path)) == []


def test_without_wandb_there_is_metrics_csv(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    assert make_loggers(parse(CPU.split()), Run(tmp_path)) == []
    assert "wandb is not installed" in capsys.readouterr().err
