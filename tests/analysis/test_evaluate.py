"""Losses over a split against a plain loop; the command."""

import math

import numpy as np
import pytest
import torch

from lm.config.options import ModelConfig
from lm.model import LanguageModel
from lm.training.loss import nll, streaming_loss, windowed_loss
from tests.commands import evaluate


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = LanguageModel(11, ModelConfig(width=16, layers=2)).eval()
    torch.nn.init.normal_(model.head.weight)
    return model


def by_hand(model, ids, context):
    """Each character's loss given its window so far, one at a time."""
    losses = []
    with torch.no_grad():
        for i in range(1, len(ids)):
            start = (i - 1) // context * context
            logits = model(torch.tensor(ids[start:i].astype(np.int64))[None])[0][0, -1]
            losses.append(-logits.log_softmax(-1)[int(ids[i])].item())
    return sum(losses) / len(losses)


def test_windowed_and_streaming_equal_a_plain_loop(model):
    ids = np.random.default_rng(0).integers(0, 11, 123).astype(np.uint16)
    assert windowed_loss(model, ids, 20) == pytest.approx(by_hand(model, ids, 20), rel=1e-5)
    assert streaming_loss(model, ids) == pytest.approx(by_hand(model, ids, len(ids)), rel=1e-5)


def test_the_loss_is_computed_in_float32():
    logits = torch.tensor([[[300.0, 0.0]]], dtype=torch.bfloat16)
    assert nll(logits, torch.tensor([[1]])).item() == pytest.approx(300)
    assert nll(logits, torch.tensor([[0]])).dtype == torch.float32


def test_the_command_prints_every_context(run_train, capsys):
    run = run_train("a", "--trainer.max_steps", "5")
    capsys.readouterr()
    evaluate([str(run), "--contexts", "8", "100"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["windowed", "8"],
        ["windowed", "100"],
        ["streaming", lines[2].split()[1]],
    ]
    assert all(0 < float(line.split()[-4]) < math.log(70) * 1.5 for line in lines)
    evaluate([str(run), "--contexts", "8", "--weights", "int8"])
    exact, rounded = (float(text.split()[-4]) for text in (lines[0], capsys.readouterr().out.splitlines()[0]))
    assert rounded == pytest.approx(exact, abs=0.1)
    assert evaluate([str(run), "--contexts", "0"]) == 2
    assert "--contexts must be at least 1, not 0" in capsys.readouterr().err


def test_several_runs_their_picture_and_a_document(run_train, tmp_path, capsys):
    runs = [str(run_train(name, "--trainer.max_steps", "3", "--eval.sample_chars", "0")) for name in ("a", "b")]
    document = tmp_path / "a.md"
    document.write_text("<!-- here: begin -->\n<!-- here: end -->\n")
    evaluate([*runs, "--contexts", "8", "16", "--png", str(tmp_path / "a.png"), "--insert", f"{document}#here"])
    out = capsys.readouterr().out
    assert out.count("windowed 8 ") == 2 and out.count("streaming") == 2 and out.strip() in document.read_text()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
