"""`char-lm bench onnx` at tiny sizes."""

import sys

import pytest

from tests import commands


@pytest.fixture(autouse=True)
def packages(threads):
    """Skip where what it measures is not installed. (The benchmark sets the number of threads: `threads` resets it.)"""
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs the package {package}")


def test_differences(bench):
    result, out = bench("onnx", "--mixers", "mingru", "gru")
    for row in result["results"]:
        assert set(row["errors"]) == {"sequence", "continued", "steps"} and max(row["errors"].values()) < 2e-6
        assert row["bytes"] > 1000 and not row["speeds"]
    assert [line.split()[0] for line in out.splitlines()[2:5]] == ["mixer", "mingru", "gru"]


def test_speeds(bench, timings):
    timings({"sequence": [0.1], "forward": [0.2], "step": [0.1], "model step": [0.5]})
    result, out = bench("onnx", "--speed")
    assert result["results"][0]["speeds"] == {"sequence": 200, "forward": 100, "step": 10, "model step": 2}
    assert out.rstrip().endswith("200    100             10      2")


def test_what_differs_is_refused(bench, monkeypatch):
    from lm.runs.onnx import layers

    monkeypatch.setattr(layers, "EPSILON", 0.1)
    result, out = bench("onnx", "--speed")
    assert result["results"][0]["skipped"].startswith("differs: sequence off by ") and "differs" in out


def test_without_the_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert commands.bench(["onnx", "--quick"]) == 2
    assert "char-lm bench onnx needs the package onnxruntime: pip install onnxruntime" in capsys.readouterr().err
