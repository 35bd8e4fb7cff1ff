"""The start of a training: kernels compiled ahead, modules that it does not import, its parts."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from lm.config.resolve import parse
from lm.training.start import Stages, kernels
from tests.commands import ROOT

UNUSED = "torch._dynamo sympy datasets transformers torchvision scipy sklearn pandas nltk onnx tensorboard IPython"
TRAIN = """import sys
from lm.cli import main
words = sys.argv[1:]
assert main(["train", *words]) == 0
print("loaded", *[name for name in {names}.split() if name in sys.modules])
"""


def train(folder: Path, corpus: Path, *words: str) -> str:
    """Train one step in a process of its own whose cache is folder/cache. Returns which of UNUSED it has imported."""
    tiny = "--model.width 8 --model.layers 1 --data.context 8 --data.batch_size 2 --trainer.max_steps 1".split()
    more = [
        "--data.corpus",
        str(corpus),
        "--runs",
        str(folder),
        "--eval.sample_chars",
        "0",
        "--trainer.accelerator",
        "cpu",
    ]
    ran = subprocess.run(
        [sys.executable, "-c", TRAIN.format(names=repr(UNUSED)), *tiny, *more, "--log.wandb", "disabled", *words],
        cwd=ROOT,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.splitlines()[-1]


@pytest.fixture
def corpus(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("abcdefghij" * 60)
    return path


@pytest.mark.parametrize(
    "words",
    [
        [],
        pytest.param(["--model.mixer", "mamba", "--optim.name", "adamw"], marks=pytest.mark.slow),
        pytest.param(["--model.mixer", "attention"], marks=pytest.mark.slow),
    ],
)
def test_the_kernels_of_the_first_step_are_compiled_ahead(compiler, tmp_path, corpus, words):
    """And no others: the files that a training leaves in an empty cache are those that were begun before it."""
    assert train(tmp_path, corpus, *words) == "loaded"
    built = {path.stem.partition("-")[0] for path in (tmp_path / "cache" / "char-lm").glob("*.so")}
    assert built == {path.stem for path in kernels(parse(words))}


def test_kernels_exist():
    for mixer in ("mingru", "minlstm", "mamba", "attention"):
        assert all(path.is_file() for path in kernels(parse(["--model.mixer", mixer])))


def test_stages_add_up(monkeypatch):
    times = iter([12.0, 15.5, 16.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    stages = Stages(10.0)
    stages.end("import torch")
    stages.end("first step")
    stages.end_once("first step")
    assert stages.seconds == {"import torch": 2.0, "first step": 3.5}


FAULTS = """import resource, torch
from lm.training.start import keep_freed_memory
keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), [faults() for _ in range(20)][-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_freed_memory_is_kept():
    """64 MB are 16,384 pages, which the system need not clear again once the heap has a free piece that fits."""
    ran = subprocess.run([sys.executable, "-c", FAULTS], cwd=ROOT, capture_output=True, text=True, check=True)
    first, last = map(int, ran.stdout.split())
    assert last < 100 < first
