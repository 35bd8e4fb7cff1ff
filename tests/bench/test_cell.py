"""`char-lm bench cell` at tiny sizes."""

import sys

import torch

from lm.bench import cell, peers


def by_name(rows):
    return {row["name"]: row for row in rows}


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
        assert rows[name]["gradient_error"] < 1e-5 and rows[name]["copies"] > 0 and rows[name]["bandwidth"] > 0
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
        return peers.loop(*peers.coefficients(torch.cat(projection.chunk(2, dim=-1)[::-1], dim=-1), 2))

    projection, grad_h = cell.inputs("mingru", (2, 7, 3), torch.device("cpu"), torch.float64)
    theirs = cell.Cell(peers.Contender(lambda: swapped, candidate_first=True), projection, grad_h).results()
    for got, want in zip(theirs, cell.truth(projection, grad_h), strict=True):
        torch.testing.assert_close(got, want)
