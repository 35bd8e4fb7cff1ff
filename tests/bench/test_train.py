"""`char-lm bench train` at tiny sizes."""

import pytest

from lm.bench import train


def by_name(rows):
    return {row["name"]: row for row in rows}


def test_train(bench):
    result, out = bench("train", "--mixers", "mingru", "gru", "attention", "--optimizer", "muon")
    rows = by_name(result["results"][0]["rows"])
    assert set(rows) == {train.YARDSTICK, "mingru, gelu", "mingru", "gru", "attention"}
    assert rows["mingru"]["parameters"] == rows["mingru, gelu"]["parameters"]
    assert rows["mingru"]["characters_per_second"] > 0 and rows["mingru"]["of_sgemm"] > 0
    assert len(rows["mingru"]["optimiser"]) == 2 and "attention" in out


def test_train_refuses_what_differs(bench, wrong_steps):
    result, out = bench("train", "--mixers", "mingru", "minlstm", "gru")
    rows = by_name(result["results"][0]["rows"])
    assert "forward against steps" in rows["mingru"]["skipped"] and "forward against steps" in out
    assert "both" in rows["gru"]


def test_train_refuses_a_minlm_that_differs(bench, monkeypatch):
    pytest.importorskip("minGRU_pytorch")
    monkeypatch.setattr(train, "copy_weights", lambda ours, theirs: None)
    result, _ = bench("train")
    rows = by_name(result["results"][0]["rows"])
    assert "logits off by" in rows[train.YARDSTICK]["skipped"]
    assert rows["mingru"]["speedup"] is None
