"""The wheel, installed into an environment that has only the dependencies, works from any folder."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.commands import ROOT
from tests.conftest import SMALL

pytestmark = pytest.mark.slow
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder, without what this process has set for Python, and with a cache of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    ran = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return ran


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(ROOT)], folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory) -> Path:
    """The programs of a new environment with the wheel. It sees the packages of this one, but not the checkout: Python
    does not read the .pth files, one of which names the checkout, of a folder that is itself named in a .pth file."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run([*PIP, "--python", str(folder), "install", "--no-deps", "--no-index", str(wheel)], folder)
    return folder / "bin"


def test_the_wheel_has_every_file_of_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path.relative_to(ROOT) for path in (ROOT / "lm").rglob("*") if path.is_file()]
    missing = {str(path) for path in files if "__pycache__" not in path.parts} - names
    assert not missing and "lm/data/pretrained/model.safetensors" in names
    assert not any("__pycache__" in name or name.startswith(("tests", "configs")) for name in names)


def test_commands_from_another_folder(programs, tmp_path):
    code = "import lm, lm.files; print(lm.__file__, lm.files.DATA, sep='\\n')"
    places = run([str(programs / "python"), "-c", code], tmp_path).stdout.splitlines()
    assert all(Path(place).is_relative_to(programs.parent) for place in places)
    command = str(programs / "char-lm")
    written = run([command, "generate", "--prompt", "ROMEO:", "--chars", "20"], tmp_path)
    assert written.stdout.startswith("ROMEO:") and "using the pretrained model" in written.stderr
    run([command, "train", *SMALL, "--trainer.max_steps", "4", "--eval.every", "2", "--name", "short"], tmp_path)
    written = run([command, "generate", "short", "--prompt", "ROMEO:", "--chars", "20"], tmp_path)
    assert written.stdout.startswith("ROMEO:") and len(written.stdout) == len("ROMEO:") + 20 + 1
    compared = run([command, "compare", "--html", "report.html"], tmp_path)
    assert "short" in compared.stdout and (tmp_path / "report.html").stat().st_size > 1e6
