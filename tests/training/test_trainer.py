"""Lightning's trainer gets the options of the run; devices that are not here are refused; Weights & Biases."""

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from lm.config.options import Config, TrainerConfig
from lm.config.resolve import parse
from lm.files import UserError
from lm.runs.folder import Run
from lm.training.trainer import make_trainer, resolve_precision
from tests.commands import train

CPU = "--trainer.accelerator cpu"


def test_the_trainer_has_the_options_of_the_run(tmp_path):
    options = "--trainer.accumulate 3 --eval.every 7 --trainer.devices 2 --trainer.num_nodes 2 --trainer.strategy ddp"
    options += " --trainer.precision bf16-mixed"
    trainer = make_trainer(parse([*CPU.split(), *options.split()]), Run(tmp_path / "a"), [])
    assert trainer.accumulate_grad_batches == 3 and trainer.val_check_interval == 21
    assert trainer.num_devices == 2 and trainer.num_nodes == 2 and trainer.world_size == 4
    assert trainer.precision == "bf16-mixed" and isinstance(trainer.strategy, DDPStrategy)
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
