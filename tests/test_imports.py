"""What each import drags in: the heavy libraries come late."""

import subprocess
import sys

import pytest

from tests.commands import ROOT


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("lm", "torch lightning numpy jsonargparse"),
        ("lm.config.resolve", "torch lightning numpy datasets wandb"),
        ("lm.corpora.corpus", "torch lightning datasets wandb tokenizers"),
        ("lm.runs.folder", "torch lightning datasets wandb"),
        ("lm.model", "lightning datasets wandb torchmetrics tokenizers"),
        ("lm.sampling", "lightning datasets wandb torchmetrics"),
        ("lm.analysis.evaluate", "lightning datasets wandb torchmetrics"),
        ("train", "torch lightning datasets wandb"),
        ("generate", "torch lightning datasets wandb"),
    ],
)
def test_import_weight(module, forbidden):
    code = f"import sys, {module}; print([m for m in '{forbidden}'.split() if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
