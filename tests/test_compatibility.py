"""Run folders, states and exports of version 1 as the program wrote them before its packages were rearranged.

`fixtures/v1` holds a run of 30 steps (minGRU, attention and minLSTM, width 16), its export, a state of two samples of
60 characters with seed 3, and what `char-lm generate RUN --load_state STATE --chars 60` then wrote. Whoever changes a
format keeps these files and adds new ones.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import lm
from lm.compare.runs import read_run
from lm.sampling import generate as continuation
from tests.commands import compare, evaluate, export, generate, train

V1 = Path(__file__).parent / "fixtures" / "v1"
VALIDATIONS = {10: (4.1144, 4.11367), 20: (3.942, 3.94102), 30: (3.83502, 3.83427)}
"""Windowed and streaming loss of the old metrics.csv, by step."""


def test_text_from_an_old_state_is_what_the_old_program_wrote(capsys):
    expected = (V1 / "continued.txt").read_text(encoding="utf-8")
    for model in (V1 / "run", V1 / "run" / "checkpoints" / "last.ckpt", V1 / "export"):
        capsys.readouterr()
        assert generate([str(model), "--load_state", str(V1 / "state"), "--chars", "60"]) == 0
        assert capsys.readouterr().out == expected


def test_a_state_saved_now_has_the_format_of_the_old_one(tmp_path):
    """Its metadata, and the names, types and shapes of its tensors."""
    assert (
        generate(
            [str(V1 / "export"), "--load_state", str(V1 / "state"), "--chars", "5", "--save_state", str(tmp_path / "s")]
        )
        == 0
    )
    with safe_open(V1 / "state", "pt") as old, safe_open(tmp_path / "s", "pt") as new:
        assert old.metadata().keys() == new.metadata().keys()
        assert all(old.metadata()[key] == new.metadata()[key] for key in ("format", "version", "seed", "model"))
        assert set(old.keys()) == set(new.keys())
        for name in old.keys():  # noqa: SIM118
            before, after = old.get_tensor(name), new.get_tensor(name)
            assert (before.shape, before.dtype) == (after.shape, after.dtype)
        assert new.get_tensor("drawn").tolist() == [65, 65]


def test_an_old_run_and_its_export_are_the_same_model():
    samples = [json.loads(line) for line in (V1 / "run" / "samples.jsonl").read_text().splitlines()]
    models = [lm.load(path) for path in (V1 / "run", V1 / "export")]
    for name, weight in models[0][0].state_dict().items():
        assert torch.equal(weight, models[1][0].state_dict()[name])
    for model, tokenizer in models:  # the sample that was written at the last step of training
        assert "".join(continuation(model, tokenizer, "\n", 40, temperature=0.8, seed=1)) == samples[-1]["text"]


def test_the_losses_of_an_old_run_are_measured_again(capsys):
    for path in (V1 / "run", V1 / "export"):
        capsys.readouterr()
        assert evaluate([str(path)]) == 0
        told = capsys.readouterr().out
        assert "3.8350" in told and "3.8343" in told


def test_compare_reads_old_metrics_summary_and_samples(capsys):
    run = read_run(V1 / "run")
    assert run.problems == [] and run.mixer == "mingru+attention+minlstm"
    assert run.summary["status"] == "finished" and run.summary["parameters"] == 13360
    assert run.summary["peak_memory_mb"] == 491.8 and run.config["model.width"] == "16"
    for index, metric in enumerate(("val/loss", "val/loss_streaming")):
        assert run.points(metric) == [(step, losses[index]) for step, losses in VALIDATIONS.items()]
    assert run.points("train/loss", "chars") == [(1280, 4.16765), (2560, 4.04265), (3840, 3.88703)]
    assert run.points("lr", "flops")[0] == (9.56006e07, 0.0014)
    assert [(sample.step, len(sample.text)) for sample in run.samples] == [(10, 41), (20, 41), (30, 41)]
    assert compare([str(V1 / "run")]) == 0
    told = capsys.readouterr().out
    for cell in ("mingru+attention+minlstm", "13,360", "3.8350", "3.8343", "finished"):
        assert cell in told


def test_an_old_run_is_trained_on(tmp_path, capsys):
    """To step 40; the old program had these losses then."""
    run = tmp_path / "v1"
    shutil.copytree(V1 / "run", run)
    assert train(["--resume", str(run), "--trainer.max_steps", "40"]) == 0
    rows = [row for row in read_run(run).rows if row["step"] == 40]
    assert [row["train/loss"] for row in rows if "train/loss" in row] == pytest.approx([3.80476], abs=1e-4)
    (row,) = [row for row in rows if "val/loss" in row]
    assert (row["val/loss"], row["val/loss_streaming"]) == pytest.approx((3.73024, 3.72984), abs=1e-4)
    (sample,) = [sample.text for sample in read_run(run).samples if sample.step == 40]
    assert sample == "\nIr: t nGX;FrngIPNhouylG; L3$ONBldainGkcs"
    assert read_run(run).points("val/loss")[:3] == [(step, loss) for step, (loss, _) in VALIDATIONS.items()]


def test_an_old_run_is_exported_as_it_was(tmp_path, capsys):
    assert export([str(V1 / "run"), str(tmp_path / "e")]) == 0
    old, new = lm.load(V1 / "export"), lm.load(tmp_path / "e")
    assert old[1].characters == new[1].characters
    assert all(torch.equal(weight, new[0].state_dict()[name]) for name, weight in old[0].state_dict().items())
