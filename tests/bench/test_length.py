"""`char-lm bench length` at tiny sizes."""

import sys

import pytest
import torch

from lm.bench import length, measure
from tests.bench.conftest import by_name


def test_length(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(length, "measure_apart", length.peak_of_one_step)  # starting Python takes seconds
    picture = tmp_path / "length.png"
    options = ("--lengths", "32", "--mixers", "mingru", "gru_reference", "--plot", str(picture))
    result, out = bench("length", *options)
    rows = by_name(result["results"])
    assert set(rows) == {"mingru", "gru_reference"} and result["skipped"] == []
    assert rows["mingru"]["speedups"]["gru_reference"] > 0 and rows["mingru"]["bytes"] >= 0
    assert "peak MiB" in out and picture.read_bytes().startswith(b"\x89PNG")


def test_memory_is_measured_in_a_process_of_its_own(bench):
    result, _ = bench("length", "--lengths", "2048", "--width", "64", "--repeat", "1")
    tensor = 2 * 2048 * 64 * 4
    assert 2 * tensor < result["results"][0]["bytes"] < 40 * tensor


def test_a_process_that_dies_ends_a_mixer(bench, monkeypatch, tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\necho no memory >&2\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    result, _ = bench("length")
    assert result["results"] == [] and "T = 16: no memory" in result["skipped"][0]["skipped"]


def test_length_stops_at_the_limit_and_at_a_failure(bench, monkeypatch):
    def apart(name, T, arguments):
        if name == "gru":
            raise measure.RefusedError("out of memory")
        return 1.0 if T == 16 else 99.0, {"bytes": T}

    monkeypatch.setattr(length, "measure_apart", apart)
    result, out = bench("length", "--lengths", "16", "32", "64", "--mixers", "mingru", "gru", "--limit", "50")
    assert [row["T"] for row in result["results"]] == [16, 32]
    assert result["results"][1]["times"] == [99.0]
    assert "stopped after T = 32" in out and "gru: out of memory" in out


def test_length_refuses_what_differs(bench, wrong_steps):
    result, out = bench("length", "--mixers", "mingru")
    assert result["results"] == [] and "forward against steps" in out


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak of a process")
def test_peak_memory_is_that_since_the_reset():
    device = torch.device("cpu")
    block = torch.ones(96 << 20)  # 384 MB, more than after the reset
    del block
    before = length.reset_peak(device)
    block = torch.ones(64 << 20)  # 256 MB: too much for the allocator to keep
    del block
    assert 200 << 20 <= length.peak_bytes(device) - before <= 300 << 20


def test_ratios(bench, timings, monkeypatch):
    timings({"mingru": [0.1, 0.5, 0.2], "gru": [1.0], "copy": [0.04]})
    monkeypatch.setattr(length, "measure_apart", lambda name, T, arguments: (0.3, {"bytes": 3 << 20}))
    result, out = bench("length", "--lengths", "16", "--mixers", "mingru", "gru")
    mingru, gru = result["results"]
    assert (mingru["copies"], gru["copies"]) == (pytest.approx(5), pytest.approx(25))
    assert (mingru["speedups"], gru["speedups"]) == ({"gru": pytest.approx(5)}, {"gru": 1})
    assert mingru["times"] == [0.1, 0.5, 0.2] and mingru["bytes"] == 3 << 20
    line = next(line for line in out.splitlines() if line.startswith("mingru"))
    assert line.split() == ["mingru", "200.0", "[100.0-500.0]", "5.0", "5.0", "3.0"]
