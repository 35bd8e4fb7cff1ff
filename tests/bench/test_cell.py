"""`char-lm bench cell` at tiny sizes."""

import sys

import torch

from lm.bench import cell, peers
from tests.bench.conftest import by_name


def test_cell(bench):
    result, out = bench("cell")
    assert isinstance(result["warnings"], list)
    assert result["conditions"]["dtype"] == "float32" and result["conditions"]["threads"] >= 1
    mingru, minlstm = result["results"]
    rows = by_name(mingru["rows"])
    assert set(rows) == set(peers.contenders("mingru", torch.device("cpu")))
    assert {"copy", "rows", "size", "cell"} <= set(minlstm)
    for name in ("ours, portable", peers.LOOP):
        assert len(rows[name]["forward"]) == len(rows[name]["both"]) == 2
        assert 0 < rows[name]["gradient_error"] < 1e-5 and rows[name]["copies"] > 0 and rows[name]["bandwidth"] > 0
        assert name in out


def test_cell_refuses_what_differs(bench, monkeypatch):
    monkeypatch.setattr(peers, "loop", lambda a, b: 1.01 * b)
    result, out = bench("cell", "--cells", "mingru")
    assert "values off by" in by_name(result["results"][0]["rows"])[peers.LOOP]["skipped"]
    assert "values off by" in out and "ours, portable" in out


def test_cell_skips_what_is_missing_and_what_is_too_slow(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "mambapy.pscan", None)
    monkeypatch.setitem(sys.modules, "minGRU_pytorch.minGRU", None)
    result, out = bench("cell", "--cells", "mingru", "--longest_loop", "8")
    rows = by_name(result["results"][0]["rows"])
    assert 'pip install "char-lm[bench]"' in rows["mambapy pscan"]["skipped"] and "pip install" in out
    assert "too slow" in rows[peers.LOOP]["skipped"]
    assert rows["ours, portable"]["speedup"] is None


def test_candidate_first_is_undone():
    def swapped(projection):
        return peers.loop(*peers.coefficients(torch.cat(projection.chunk(2, dim=-1)[::-1], dim=-1)))

    projection, grad_h = cell.inputs("mingru", (2, 7, 3), torch.device("cpu"), torch.float64)
    theirs = cell.Cell(peers.Contender(lambda: swapped, candidate_first=True), projection, grad_h).results()
    for got, want in zip(theirs, peers.truth("mingru", grad_h, projection), strict=True):
        torch.testing.assert_close(got, want)


def test_ratios(bench, timings):
    """At B=2, T=64, D=16 a copy takes 1 s here; a fused minLSTM moves 12 such tensors, a copy 2."""
    ours, peer = "ours, portable", peers.YARDSTICK
    timings({f"{ours} forward": [2, 9, 1], f"{ours} both": [3, 5, 4], f"{peer} both": [20.0], "copy": [0.5, 1, 2]})
    result, out = bench("cell", "--cells", "minlstm")
    rows = by_name(result["results"][0]["rows"])
    assert rows[ours]["forward"] == [2, 9, 1] and rows[ours]["both"] == [3, 5, 4]
    assert (rows[ours]["copies"], rows[ours]["bandwidth"], rows[ours]["speedup"]) == (4, 12 / 2 / 4, 5)
    line = next(line for line in out.splitlines() if line.startswith(ours)).removeprefix(ours).split()
    assert line[:-1] == "2,000.0 [1,000.0-9,000.0] 4,000.0 [3,000.0-5,000.0] 4.0 150% 5.0".split()
