"""What a run notes of its machine; training where `fcntl` and `resource` do not exist."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from lm.runs import environment
from lm.runs.folder import Run
from tests.commands import ROOT
from tests.conftest import SMALL


def test_versions_processor_command_and_text(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--seed", "1"])
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package"))
    assert environment.environment("digest") == {
        "command": ["train.py", "--seed", "1"],
        "corpus": "digest",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": environment.processor_name(),
        "cores": os.cpu_count(),
        "packages": {"torch": importlib.metadata.version("torch")},
    }


def test_the_processor_is_named_by_its_model_or_its_architecture(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_: "processor\t: 0\nmodel name\t: Fast One: 9\nmodel name\t: x\n")
    assert environment.processor_name() == "Fast One: 9"
    monkeypatch.setattr(Path, "read_text", lambda *_: "CPU part\t: 0xd0c\n")
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert environment.processor_name() == platform.machine()


def test_peak_memory_grows_with_what_is_used(monkeypatch):
    before = environment.peak_bytes()
    size = before // 8 + 2**25  # as many float64 as bytes are in use, and 256 MB more
    del (used := [torch.ones(size, dtype=torch.float64)])[:]
    assert used == [] and 8 * size <= environment.peak_bytes() < before + 9 * size
    monkeypatch.setattr(environment, "peak_bytes", lambda: 3 * 2**20)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert environment.peak_memory() == {"peak_memory_mb": 3.0}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2**19)
    assert environment.peak_memory() == {"peak_memory_mb": 3.0, "peak_gpu_memory_mb": 0.5}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(environment, "peak_bytes", lambda: None)
    assert environment.peak_memory() == {}


def test_without_proc_the_system_is_asked(monkeypatch):
    import resource

    def missing(*_):
        raise FileNotFoundError

    expected = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    monkeypatch.setattr(Path, "read_text", missing)
    assert expected <= environment.peak_bytes() < 1.5 * expected
    monkeypatch.setitem(sys.modules, "resource", None)
    assert environment.peak_bytes() is None


WITHOUT = """
import importlib, pkgutil, sys
sys.modules.update(fcntl=None, resource=None)
import lm
from lm.cli import main
from lm.runs import environment
environment.peak_bytes = lambda: None  # there is no /proc either
code = main(["train", *sys.argv[1:]])
for module in pkgutil.walk_packages(lm.__path__, "lm."):
    if module.name not in ("lm.__main__", "lm.recurrence.cuda"):
        importlib.import_module(module.name)
sys.exit(code)
"""


def test_training_where_fcntl_and_resource_do_not_exist(tmp_path, corpus):
    argv = [*SMALL, "--data.corpus", str(corpus), "--runs", str(tmp_path), "--name", "a", "--trainer.max_steps", "2"]
    done = subprocess.run([sys.executable, "-c", WITHOUT, *argv], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "finished after 2 steps" in done.stderr and " MB)" not in done.stderr
    assert "peak_memory_mb" not in Run(tmp_path / "a").summary()
