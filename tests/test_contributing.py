"""CONTRIBUTING.md's example of a new mixer: in a copy of the package it passes the laws, trains and writes text."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT
from tests.conftest import SMALL

pytestmark = pytest.mark.slow
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- (lm/\S+) -->\n```python\n(.*?)```", TEXT, re.DOTALL))
"""The marked blocks of code by the file they belong to."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the package and of the mixers' tests with the mixer of the example added as the document says."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("lm", "tests", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "fixtures"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (mixer,) = (path for path in BLOCKS if path.startswith("lm/mixers/"))
    (folder / mixer).write_text(BLOCKS[mixer], encoding="utf-8")
    options = folder / "lm/config/options.py"
    old = options.read_text(encoding="utf-8")
    new = old.replace("MIXERS = {\n", "MIXERS = {\n" + BLOCKS["lm/config/options.py"])
    assert BLOCKS["lm/config/options.py"].count("\n") == 1 and new != old
    options.write_text(new, encoding="utf-8")
    return folder


def run(checkout: Path, *words: str) -> str:
    """The output of a program in the checkout."""
    ran = subprocess.run([sys.executable, *words], cwd=checkout, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_the_example_passes_the_laws(checkout):
    command = re.search(r"^\.venv/bin/python (-m pytest tests/mixers .*)$", TEXT, re.MULTILINE)
    told = run(checkout, *command[1].split(), "-q", "-p", "no:cacheprovider")
    passed = re.search(r"^(\d+) passed", told.splitlines()[-1])
    assert passed and int(passed[1]) > 20, told


def test_the_example_is_an_option_and_trains(checkout):
    assert "[average, mingru, " in run(checkout, "-m", "lm", "train", "--help")
    words = [*SMALL, "--model.mixer", "[average, attention]", "--trainer.max_steps", "3", "--name", "a"]
    run(checkout, "-m", "lm", "train", *words)
    assert len(run(checkout, "-m", "lm", "generate", "a", "--prompt", "A", "--chars", "9")) == 11
