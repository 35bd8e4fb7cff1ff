"""`char-lm export`: each format by its command."""

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
