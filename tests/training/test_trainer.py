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
    options += " --trainer.precision bf16-mixed"
    trainer = make_trainer(parse([*CPU.split(), *options.split()]), Run(tmp_path / "a"), [])
    assert trainer.accumulate_grad_batches == 3 and trainer.val_check_interval == 21
    assert trainer.num_devices == 2 and trainer.num_nodes == 2 and trainer.world_size == 4
    assert trainer.precision == "bf16-mixed" and type(trainer.strategy).__name__ == "DDPStrategy"
    assert trainer.strategy.root_device.type == "cpu" and not trainer.loggers
    assert trainer.max_epochs == -1 and trainer.max_steps == -1  # the recorder ends training
    assert trainer.check_val_every_n_epoch is None and trainer.num_sanity_val_steps == 0


@pytest.mark.parametrize("options", ["--trainer.strategy magic", "--trainer.accelerator gpu --trainer.devices 12"])
def test_what_this_machine_does_not_have_is_refused(options, tmp_path):
    with pytest.raises(UserError, match=r"^trainer: .* cannot be had here: .*; the default, auto, can$"):
        make_trainer(parse([*CPU.split(), *options.split()]), Run(tmp_path / "a"), [])


@pytest.mark.parametrize(
    ("asked", "accelerator", "has", "expected", "reason"),
    [
        ("auto", "cpu", {"cuda", "cuda bfloat16"}, 32, "the processor does not multiply bfloat16"),
        ("auto", "auto", {"avx512"}, "bf16-mixed", "the processor multiplies bfloat16"),
        ("auto", "cpu", {"cuda", "amx"}, "bf16-mixed", "the processor multiplies bfloat16"),
        ("auto", "auto", {"cuda", "cuda bfloat16"}, "bf16-mixed", "the GPU multiplies bfloat16"),
        ("auto", "gpu", {"cuda", "avx512"}, 32, "the GPU does not multiply bfloat16"),
        (32, "auto", {"cuda", "cuda bfloat16", "avx512"}, 32, ""),
        ("bf16-mixed", "cpu", set(), "bf16-mixed", ""),
        ("16-mixed", "gpu", {"cuda"}, "16-mixed", ""),
        ("16-mixed", "auto", {"avx512"}, None, ""),
        ("16-mixed", "cpu", {"cuda"}, None, ""),
    ],
)
def test_precision_is_the_fastest_of_the_device(asked, accelerator, has, expected, reason, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in has)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: "cuda bfloat16" in has)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: "avx512" in has)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: "amx" in has)
    config = Config(trainer=TrainerConfig(precision=asked, accelerator=accelerator))
    if expected is None:
        with pytest.raises(UserError, match="16-mixed needs a GPU"):
            resolve_precision(config)
        return
    assert resolve_precision(config) == (expected, reason)
    if asked == "auto" and "cuda" not in has:
        assert resolve_precision(config, old=True) == (32, "as before")


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


def test_a_run_keeps_what_auto_meant_and_an_old_one_goes_on_in_32(run_train, monkeypatch, capsys):
    """Old runs have `auto` in their configuration, which meant 32 on every CPU."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    words = ["--trainer.precision", "auto", "--trainer.max_steps"]
    run = run_train("a", *words, "2")
    assert "precision bf16-mixed (the processor multiplies bfloat16)" in capsys.readouterr().err
    assert Run(run).config().trainer.precision == Run(run).summary()["precision"] == "bf16-mixed"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # another machine
    assert train(["--resume", str(run), *words, "4"]) == 0
    assert Run(run).summary()["precision"] == "bf16-mixed"
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("precision: bf16-mixed", "precision: auto"))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert train(["--resume", str(run), "--trainer.max_steps", "6"]) == 0
    assert "(as before)" in capsys.readouterr().err and Run(run).summary()["precision"] == "32-true"
