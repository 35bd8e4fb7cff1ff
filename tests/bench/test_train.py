"""`char-lm bench train` at tiny sizes."""

import pytest
import torch

from lm.bench import models, peak, train
from tests.bench.conftest import by_name


def test_train(bench):
    result, out = bench("train", "--mixers", "mingru", "gru", "attention", "--optimizer", "muon")
    rows = by_name(result["results"][0]["rows"])
    assert set(rows) == {train.YARDSTICK, "mingru, gelu", "mingru", "gru", "attention"}
    assert rows["mingru"]["parameters"] == rows["mingru, gelu"]["parameters"]
    assert rows["mingru"]["characters_per_second"] > 0 and rows["mingru"]["of_sgemm"] > 0
    assert len(rows["mingru"]["optimiser"]) == 2 and "attention" in out


def test_attention_has_twice_the_layers():
    assert [len(train.make_ours(name, 8, 32, 2).blocks) for name in ("mingru", "attention")] == [2, 4]


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


def test_ratios(bench, timings, monkeypatch):
    """64 characters in 2 s; a 128 x 128 product takes 1 s, and 4e6 multiply-adds take 2 s."""
    monkeypatch.setattr(peak, "multiply_adds", lambda dtype: 8e6)
    times = {"gru": [1.0, 2.0, 5.0], train.YARDSTICK: [3.0], "sgemm": [1.0], "peak": [2.0], "gru optimiser": [0.5]}
    timings(times)
    result, out = bench("train", "--mixers", "gru", "--optimizer", "adamw")
    row = by_name(result["results"][0]["rows"])["gru"]
    model = models.make("gru", 32, 1, 65, expansion=2.0)
    assert row["parameters"] == sum(p.numel() for p in model.parameters())
    assert row["characters_per_second"] == 32 and row["flops_per_second"] == 6 * row["parameters"] * 32
    assert row["of_sgemm"] == pytest.approx(6 * row["parameters"] * 32 / (2 * 128**3))
    assert row["of_peak"] == pytest.approx(6 * row["parameters"] * 32 / 4e6) and "of peak" in out
    assert row["speedup"] == 1.5 and row["optimiser"] == [0.5] and "500.0 [500.0-500.0]" in out
    assert result["results"][0]["sgemm_flops_per_second"] == pytest.approx(2 * 128**3)
    assert result["results"][0]["peak_flops_per_second"] == 4e6


def test_the_peak_is_that_of_the_type(bench, monkeypatch):
    asked = []
    monkeypatch.setattr(peak, "multiply_adds", asked.append)
    _, out = bench("train", "--mixers", "mingru", "--dtype", "bfloat16", "--repeat", "1")
    assert set(asked) == {torch.bfloat16} and "optimiser" not in out
