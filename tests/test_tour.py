"""docs/tour.ipynb, the notebook for a lecture: kept without outputs, its commands are right, and it runs."""

import json
import re
import shlex

import pytest

from lm.cli import COMMANDS
from lm.config.resolve import parse
from tests.commands import ROOT

TOUR = ROOT / "docs" / "tour.ipynb"
CELLS = json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_it_has_no_outputs():
    assert len(CODE) > 10
    for cell in CELLS:
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert set(cell["metadata"]) <= {"tags"}


def test_its_commands_are_right():
    (options,) = (re.findall(r'"(--trainer[^"]*|\s--log[^"]*)"', code) for code in CODE if "options =" in code)
    words = [shlex.split(line) for code in CODE for line in re.findall(r'char_lm\(f?"(.*)"\)', code)]
    assert {command for command, *_ in words} - {"--help"} <= set(COMMANDS)
    for _, *given in (line for line in words if line[0] == "train"):
        more = " ".join(options).replace("{SECONDS / 60}", "1").split()
        parse([word for word in given if word != "{options}"] + more)


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch):
    """With a few seconds of training, in a kernel of its own; the cell that installs is left out."""
    nbformat = pytest.importorskip("nbformat", reason="needs the package nbclient")
    nbclient = pytest.importorskip("nbclient", reason="needs the package nbclient")
    pytest.importorskip("ipykernel", reason="needs the package ipykernel")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    book = nbformat.read(TOUR, as_version=4)
    nbformat.validate(book)
    for cell in book.cells:
        cell.source = cell.source.replace("SECONDS = 60 ", "SECONDS = 3 ")
    client = nbclient.NotebookClient(book, timeout=1200, skip_cells_with_tag="skip-execution")
    client.execute(cwd=str(tmp_path))
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "budget   0.05 minutes" in printed and "--- temperature 0.8" in printed and "streaming" in printed
    assert "What channels stand for" in printed
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2 and min(map(len, pictures)) > 5000
