"""Heavy libraries are imported late: importing a module or asking for help loads only what it needs."""

import subprocess
import sys

import pytest

from lm.cli import COMMANDS
from tests.commands import ROOT


def loaded(code: str, names: str) -> str:
    """Which of these modules a program has imported when it ends."""
    code = f"import sys\n{code}\nprint('loaded', *[name for name in {names.split()} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("lm", "torch lightning numpy"),
        ("lm.config.resolve", "torch lightning numpy datasets wandb"),
        ("lm.corpora.corpus", "torch lightning datasets wandb tokenizers"),
        ("lm.runs.folder", "torch lightning datasets wandb"),
        ("lm.compare.main", "torch lightning datasets wandb matplotlib plotly"),
        ("lm.model", "lightning datasets wandb torchmetrics tokenizers"),
        ("lm.sampling", "lightning datasets wandb torchmetrics"),
        ("lm.analysis.evaluate", "lightning datasets wandb torchmetrics"),
        ("train", "torch lightning datasets wandb"),
        ("generate", "torch lightning datasets wandb"),
    ],
)
def test_import_weight(module, forbidden):
    assert loaded(f"import {module}", forbidden) == "loaded"


@pytest.mark.parametrize("option", ["--help", "--no_such_option"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_wrong_options_need_no_torch(command, option):
    code = f"from lm.cli import main; assert main(['{command}', '{option}']) == {0 if option == '--help' else 2}"
    names = "torch lightning datasets wandb matplotlib" + (
        " numpy" if command in ("train", "generate", "bench") else ""
    )
    assert loaded(code, names) == "loaded"
