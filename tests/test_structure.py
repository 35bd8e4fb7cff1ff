"""The layout of lm/: which package may import which, no circles, and the sizes of modules and functions."""

import ast
import graphlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import ROOT

EXAMPLE = "lm/mixers/average.py"
"""The file that CONTRIBUTING.md adds as an example."""
LEVELS = [
    "files",
    "config report native",
    "corpora recurrence",
    "ops",
    "mixers",
    "model",
    "runs",
    "sampling compare",
    "training",
    "analysis",
    "bench",
    "cli",
    "__main__",
]
"""Packages and modules of lm/ from the bottom up: each may import what is on lower lines, and itself."""
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names.split()}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "lm").rglob("*.py"))
}
"""Every module of lm by its name, with its file."""


def imports(path: Path) -> Iterator[str]:
    """The modules of lm that a file imports anywhere, in functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            found = next((end for end in (name, name.rpartition(".")[0]) if end in MODULES), None)
            if found not in (None, "lm"):
                yield found


def test_every_package_has_a_level():
    entries = {path.stem for path in (ROOT / "lm").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert entries - {"__init__", "__pycache__"} == set(LEVEL)
    assert len([name for name in entries if not name.startswith("__")]) <= 16


@pytest.mark.parametrize("module", [name for name in MODULES if name != "lm"])
def test_imports_go_down(module):
    own = module.split(".")[1]
    for imported in imports(MODULES[module]):
        other = imported.split(".")[1]
        assert other == own or LEVEL[other] < LEVEL[own], f"{module} imports {imported}"


def test_no_module_imports_itself_through_others():
    graph = {name: set(imports(path)) - {name} for name, path in MODULES.items() if name != "lm"}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("module", MODULES)
def test_sizes(module):
    text = MODULES[module].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 350 or module == "lm.recurrence.cuda"  # Triton's kernels stay together
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 50, f"{module}.{node.name}"


def texts() -> Iterator[Path]:
    """The files of text whose references are checked."""
    yield from (path for path in (ROOT / "lm").rglob("*") if path.suffix in (".py", ".c", ".h", ".js"))
    yield from (ROOT / "tests").rglob("*.py")
    yield from (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("data/**/*.md"), ROOT / "Makefile")


@pytest.mark.parametrize("path", list(texts()), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_names_that_a_text_mentions_exist(path):
    text = path.read_text(encoding="utf-8")
    for file in re.findall(r"(?<![\w/.\"])(?:lm|tests|docs|configs|data)/[\w/]*\w\.(?:py|c|h|js|md|yaml|json)\b", text):
        assert (ROOT / file).exists() or file == EXAMPLE, file
    for name in re.findall(r"`(lm(?:\.\w+)+)", text):
        assert pkgutil.resolve_name(name), name
