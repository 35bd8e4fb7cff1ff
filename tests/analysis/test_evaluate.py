"""`char-lm evaluate`: each number that it prints against plain torch."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from lm.config.options import Config, CopyingOptions, DataConfig, ModelConfig
from lm.corpora.copying import Copying
from lm.corpora.tokenizer import CharTokenizer
from lm.model import LanguageModel
from lm.runs import load
from tests.commands import evaluate

TOKENIZER = CharTokenizer("abcdefghijk")


@pytest.fixture
def model(monkeypatch) -> LanguageModel:
    """A random model whose state matters, which `evaluate` loads for any run."""
    torch.manual_seed(0)
    model = LanguageModel(len(TOKENIZER), ModelConfig(width=16, layers=2)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5)
    config = Config(model=ModelConfig(width=16, layers=2), data=DataConfig(context=32))
    monkeypatch.setattr(load, "load_with_config", lambda run: (model, TOKENIZER, config))
    return model


@pytest.fixture
def text(tmp_path) -> Path:
    """60,000 random characters of the model's alphabet: 6,000 for validation, more than one piece of the stream."""
    path = tmp_path / "text.txt"
    path.write_text("".join(random.Random(0).choices(TOKENIZER.characters, k=60_000)))
    return path


def printed(capsys) -> list[list[str]]:
    return [line.split() for line in capsys.readouterr().out.splitlines()]


@torch.no_grad()
def total_loss(model: LanguageModel, ids: np.ndarray) -> float:
    """Summed over all characters but the first, each given those before it."""
    tensor = torch.from_numpy(ids.astype(np.int64))
    scores = model(tensor[None, :-1])[0][0].double().log_softmax(-1)
    return -scores.gather(1, tensor[1:, None]).sum().item()


def rounded(loss: float) -> list[str]:
    return [f"{loss:.4f}", "nats/char", f"{loss / math.log(2):.4f}", "bits/char"]


def test_windowed_and_streaming_losses(model, text, capsys):
    assert evaluate(["any", "--corpus", str(text), "--contexts", "32", "1000"]) == 0
    ids = TOKENIZER.encode(text.read_text()[-6000:])
    windows = {c: sum(total_loss(model, ids[i : i + c + 1]) for i in range(0, 5999, c)) / 5999 for c in (32, 1000)}
    lines = printed(capsys)
    assert lines[0] == ["windowed", "32", *rounded(windows[32])]
    assert lines[1] == ["windowed", "1000", *rounded(windows[1000])]
    assert lines[2] == ["streaming", *rounded(total_loss(model, ids) / 5999)]
    assert len({line[-4] for line in lines}) == 3  # they differ in what the state has seen


def test_the_context_is_the_runs_own_by_default(model, text, capsys):
    assert evaluate(["any", "--corpus", str(text)]) == 0
    assert printed(capsys)[0][:2] == ["windowed", "32"]


def test_weights_are_rounded_first(model, text, capsys):
    assert evaluate(["any", "--corpus", str(text), "--contexts", "100", "--weights", "bfloat16"]) == 0
    ids = TOKENIZER.encode(text.read_text()[-6000:])
    exact = total_loss(model, ids) / 5999
    for name, p in model.named_parameters():
        if p.dim() == 2 and "convolution" not in name and "embedding" not in name:
            p.data = p.data.bfloat16().float()
    loss = total_loss(model, ids) / 5999
    assert printed(capsys)[1] == ["streaming", *rounded(loss)] != ["streaming", *rounded(exact)]


def test_another_text_is_read_in_the_models_alphabet(model, tmp_path, capsys):
    """Of this text's alphabet, `k` is missing, so that its own ids would be the same; `z` is unknown to the model."""
    path = tmp_path / "other.txt"
    path.write_text("zkab" * 500)
    assert evaluate(["any", "--corpus", str(path), "--contexts", "10"]) == 0
    ids = TOKENIZER.encode("zkab" * 50)
    assert printed(capsys)[1] == ["streaming", *rounded(total_loss(model, ids) / 199)]


def test_copying_is_scored_per_answer(monkeypatch, capsys):
    task = CopyingOptions(tokens=2, vocabulary=4, shortest=20)
    data = DataConfig(corpus="selective_copying", context=40, copying=task)
    problems = Copying.from_config(data)
    torch.manual_seed(0)
    model = LanguageModel(len(problems.tokenizer), ModelConfig(width=16, layers=1, residual_init=1.0)).eval()
    torch.nn.init.normal_(model.head.weight[1:3])  # of the letters
    monkeypatch.setattr(load, "load_with_config", lambda run: (model, problems.tokenizer, Config(data=data)))
    assert evaluate(["any"]) == 0
    losses, right = [], []
    for row in range(512):
        x, y = (
            torch.from_numpy(part) for part in problems._problems([np.random.Philox(key=0, counter=[0, 3, 0, row])])
        )
        with torch.no_grad():
            scores = model(x)[0][0].log_softmax(-1)
        losses += [-scores[place, y[0, place]].item() for place in (38, 39)]
        right.append([bool(scores[place].argmax() == y[0, place]) for place in (38, 39)])
    answers, whole = np.mean(right, axis=0), np.mean(np.all(right, axis=1))
    expected = f"context 40 {np.mean(losses):.4f} nats/answer {np.mean(right):.2%} right "
    expected += f"(answer {answers.argmin() + 1}: {answers.min():.2%}; whole problems: {whole:.2%})"
    assert printed(capsys) == [expected.split()] and 0 < whole < 1
    assert evaluate(["any", "--contexts", "16"]) == 0  # shorter than any in training
    assert evaluate(["any", "--corpus", "bible"]) == 2
    assert "any was trained on selective_copying, not on text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--contexts", "0"], "--contexts must be at least 1, not 0"),
        (["--contexts", "6000"], "--contexts: 6000 is not below the 6,000 characters that are scored"),
        (["--weights", "int4"], "--weights: expected float32 or bfloat16 or int8, not int4"),
    ],
)
def test_mistakes_get_one_line(model, text, words, message, capsys):
    assert evaluate(["any", "--corpus", str(text), *words]) == 2
    assert capsys.readouterr().err.startswith(f"char-lm evaluate: error: {message}")


def test_several_runs_their_picture_and_a_document(run_train, tmp_path, capsys):
    runs = [str(run_train(name, "--trainer.max_steps", "3", "--eval.sample_chars", "0")) for name in ("a", "b")]
    document = tmp_path / "a.md"
    document.write_text("<!-- here: begin -->\n<!-- here: end -->\n")
    capsys.readouterr()
    evaluate([*runs, "--contexts", "8", "16", "--png", str(tmp_path / "a.png"), "--insert", f"{document}#here"])
    out = capsys.readouterr().out
    assert out.startswith(f"{runs[0]} (mingru, trained at context 32)\nwindowed 8 ")
    assert out.count("windowed 8 ") == 2 and out.count("streaming") == 2
    command = f"$ char-lm evaluate {runs[0]} {runs[1]} --contexts 8 16 --png {tmp_path / 'a.png'}"
    assert f"{command}\n{out.strip()}" in document.read_text()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
