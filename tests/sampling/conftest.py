"""One trained run for all tests of sampling."""

import pytest

from lm.corpora.sources import read_text
from lm.files import DATA
from tests.commands import train
from tests.conftest import SMALL


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> str:
    """The folder of a run, which no test changes; its corpus lies beside it as corpus.txt."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "corpus.txt").write_text(read_text(DATA / "tiny_shakespeare.txt.xz")[:12_000], encoding="utf-8")
    options = ["--data.corpus", str(folder / "corpus.txt"), "--runs", str(folder), "--name", "a"]
    assert train([*SMALL, *options, "--trainer.max_steps", "30"]) == 0
    return str(folder / "a")


@pytest.fixture
def run(trained, capsys) -> str:
    """The run's folder; nothing is on stdout and stderr."""
    capsys.readouterr()
    return trained
