"""`char-lm export`: each format by its command."""

import re

import pytest
import torch

from lm import load
from tests import commands


@pytest.fixture
def run(run_train, capsys):
    path = run_train("a", "--trainer.max_steps", "20", "--eval.every", "10")
    capsys.readouterr()
    return path


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_folder_of_the_best_or_the_last_checkpoint(run, tmp_path, capsys, which):
    folder = tmp_path / which
    assert commands.export([str(run), str(folder), "--which", which]) == 0
    assert capsys.readouterr().err == f"wrote {folder}; use it with: char-lm generate {folder}\n"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.md", "config.yaml", "model.safetensors", "tokenizer.json"]
    expected = load(run / "checkpoints" / f"{which}.ckpt")[0].state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in load(folder)[0].state_dict().items())


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_a_page_that_asks_for_nothing(tmp_path, capsys, weights):
    page = tmp_path / "page.html"
    assert commands.export(["pretrained", str(page), "--format", "web", "--weights", weights]) == 0
    assert capsys.readouterr().err == f"wrote {page}; open it in a browser\n"
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in text and "'wasm-unsafe-eval'" in text and "connect-src 'none'" in text
    assert not re.search(r"(src|href)=\"(?!data:)|https?://|unsafe-eval'(?<!wasm-unsafe-eval')", text)
    assert f"parameters, {weights}, trained on" in text


@pytest.mark.parametrize(
    ("form", "weights", "allowed"), [("folder", "int8", "float32 or bfloat16"), ("onnx", "bfloat16", "float32")]
)
def test_weights_that_a_format_does_not_have(tmp_path, capsys, form, weights, allowed):
    assert commands.export(["pretrained", str(tmp_path / "a"), "--format", form, "--weights", weights]) == 2
    assert f"--weights of --format {form} must be {allowed}\n" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_mixer_that_no_page_can_run(run_train, tmp_path, capsys):
    path = run_train("b", "--model.mixer", "gru", "--trainer.max_steps", "1")
    capsys.readouterr()
    assert commands.export([str(path), str(tmp_path / "a.html"), "--format", "web"]) == 2
    error = "this model cannot run in a page: the mixer GRU has no native step"
    assert error in capsys.readouterr().err and not (tmp_path / "a.html").exists()
