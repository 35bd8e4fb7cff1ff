"""Runs to look into: small models on 12,000 characters."""

from pathlib import Path

import pytest

from lm.corpora.sources import read_text
from lm.files import DATA
from tests.commands import train
from tests.conftest import SMALL

MIXERS = {"mingru": "mingru", "minlstm": "minlstm", "attention": "attention", "mixed": "[mingru, minlstm]"}
HOSTILE = "z<img src=x onerror=window.hacked=1>"


@pytest.fixture(scope="package")
def runs(tmp_path_factory) -> Path:
    """A folder of runs, each with the name of its mixer."""
    folder = tmp_path_factory.mktemp("inspect")
    text = f"</script><script>window.hacked=1</script>{HOSTILE}\n"
    (folder / "corpus.txt").write_text(text + read_text(DATA / "tiny_shakespeare.txt.xz")[:12_000], encoding="utf-8")
    for name, mixer in MIXERS.items():
        words = ["--data.corpus", f"{folder}/corpus.txt", "--runs", str(folder), "--name", name, "--model.mixer", mixer]
        assert train([*SMALL, *words, "--trainer.max_steps", "8", "--eval.sample_chars", "0"]) == 0
    return folder
