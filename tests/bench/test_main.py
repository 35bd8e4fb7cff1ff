"""`char-lm bench`: options, help, outputs."""

import contextlib
import importlib.util
import subprocess
import sys

import pytest

from lm.bench import parameters
from lm.bench.options import BENCHMARKS
from tests import commands


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("nothing", "unknown benchmark nothing; known are overhead, cell"),
        ("celll", "unknown benchmark celll; did you mean cell?"),
        ("cell --sizes 3x4", "--sizes: expected BxTxD with whole numbers, not 3x4"),
        ("cell --cells gru", "--cells: expected mingru or minlstm, not gru"),
        ("cell --dtype int8", "--dtype: expected float32 or bfloat16 or float16, not int8"),
        ("train --mixers mamba3", "lstm_reference, not mamba3; did you mean mamba?"),
        ("train --repeat 0", "--repeat must be at least 1, not 0"),
        ("length --width 5", "a width must be even, not 5"),
        ("sample --widths 16 5", "a width must be even, not 5"),
        ("sample --json /nowhere/at/all.json", "cannot write /nowhere/at/all.json: No such file or directory"),
        ("length --lenghts 5", "did you mean --lengths?"),
    ],
)
def test_mistakes_get_one_line(options, message, capsys):
    assert commands.bench(options.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("char-lm bench: error: ") and message in error and error.count("\n") == 1


def test_help_needs_no_torch():
    code = """import contextlib, sys
from lm.bench.options import BENCHMARKS
from lm.cli import main
for words in ([], *([name, "--help"] for name in BENCHMARKS)):
    with contextlib.suppress(SystemExit):
        main(["bench", *words])
print("torch" in sys.modules)"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert answer.endswith("\nFalse\n")


def test_every_benchmark_has_its_module_and_its_help(capsys):
    for name in BENCHMARKS:
        assert importlib.util.find_spec(f"lm.bench.{name}")
        with contextlib.suppress(SystemExit):
            commands.bench([name, "--help"])
        assert "--json" in capsys.readouterr().out


def test_the_command_line_goes_over_quick(bench):
    result, _ = bench("busy", "--cells", "mingru", "--repeat", "1")
    assert result["conditions"]["options"]["repeat"] == 1 and result["conditions"]["options"]["sizes"] == ["2x64x16"]


def test_json_has_null_for_what_is_no_number(bench, monkeypatch):
    monkeypatch.setattr(parameters, "run", lambda options: {"a": float("inf"), "b": [float("nan")]})
    assert bench("parameters")[0] == {"a": None, "b": [None]}


def test_a_table_goes_into_a_document(bench, tmp_path):
    document = tmp_path / "a.md"
    document.write_text("before\n<!-- bench parameters: begin -->\nold\n<!-- bench parameters: end -->\nafter\n")
    _, out = bench("parameters", "--insert", str(document))
    text = document.read_text()
    assert out.strip() in text and "old" not in text and "$ char-lm bench parameters --json" in text
    assert text.startswith("before\n<!--") and text.endswith("-->\nafter\n") and "--insert" not in text


def test_a_document_without_marks_is_refused_before_measuring(tmp_path, capsys):
    (tmp_path / "a.md").write_text("nothing\n")
    assert commands.bench(["parameters", "--insert", str(tmp_path / "a.md")]) == 2
    out, err = capsys.readouterr()
    assert "needs one line <!-- bench parameters: begin -->" in err and not out
