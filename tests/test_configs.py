"""Every config parses, says its command, and makes a model that trains for a step."""

import pytest
import torch

from lm.config.resolve import parse
from lm.model import LanguageModel
from lm.training.loss import nll
from tests.commands import ROOT

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_config(path):
    head = path.read_text().splitlines()
    command = f"char-lm train --config {path.relative_to(ROOT)}"
    assert any(line.startswith("# command") and command in line for line in head[:6])
    assert any(line.startswith("# expect") for line in head[:6])
    config = parse(["--config", str(path)])
    config.model.width = min(config.model.width, 64)
    model = LanguageModel(20, config.model)
    ids = torch.randint(0, 20, (1, 33))
    nll(model(ids[:, :-1])[0], ids[:, 1:]).backward()
    assert all(p.grad is not None for p in model.head.parameters())
