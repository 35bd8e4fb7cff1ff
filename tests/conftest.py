"""Shared fixtures: a small corpus, and `char-lm train` run on it in this process."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from lm.files import cache_folder
from tests.commands import train

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: test processes share the cores, one each
signal.signal(signal.SIGINT, signal.default_int_handler)  # programs started by a background job of a shell ignore it
settings.register_profile("shared machine", deadline=None, max_examples=50)
settings.load_profile("shared machine")

XDG = "XDG_CACHE_HOME"
SMALL = (
    "--model.width 32 --model.layers 2 --data.context 32 --data.batch_size 4 --eval.sample_chars 20 "
    "--log.wandb disabled --trainer.accelerator cpu --trainer.precision 32"
).split()
"""A model and batches that train in milliseconds."""


@pytest.fixture(autouse=True, scope="session")
def memory_is_freed() -> Iterator[None]:
    """Training in the process of the tests must not change how that frees memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm.training.main.keep_freed_memory", lambda: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def corpora_are_cached_elsewhere(tmp_path_factory) -> Iterator[None]:
    """Texts of tests do not fill the user's cache, unless a test says where that is."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm.corpora.cache.cache_folder", lambda: cache_folder() if XDG in os.environ else folder)
        yield


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A text file with 12,000 characters of Shakespeare."""
    from lm.corpora.sources import read_text
    from lm.files import DATA

    path = tmp_path / "corpus.txt"
    path.write_text(read_text(DATA / "tiny_shakespeare.txt.xz")[:12_000], encoding="utf-8")
    return path


@pytest.fixture
def run_train(tmp_path: Path, corpus: Path):
    """Run `char-lm train` with small settings; returns the run folder."""

    def call(name: str, *options: str, code: int = 0) -> Path:
        argv = [*SMALL, "--data.corpus", str(corpus), "--runs", str(tmp_path), "--name", name, *options]
        assert train(argv) == code
        return tmp_path / name

    return call


@pytest.fixture
def unused_port() -> int:
    """A port of this machine on which nobody listens at the moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def compiler() -> None:
    """Skip what needs a compiler where there is none."""
    from lm.native.build import BuildError
    from lm.recurrence import cpu

    try:
        cpu.library()
    except BuildError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["portable", "native"])
def backend(request, monkeypatch) -> str:
    """Each backend in turn, its outputs poisoned with NaN before it writes them."""
    import torch

    if request.param == "native":
        request.getfixturevalue("compiler")
    monkeypatch.setenv("LM_BACKEND", request.param)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield request.param
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads():
    """Set the number of threads for one test: with more of them, more and smaller pieces."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
