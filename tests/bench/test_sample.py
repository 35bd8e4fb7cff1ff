"""`char-lm bench sample` at tiny sizes."""

import math
import re

import pytest
import torch

from lm.bench import models, peak, sample
from tests.bench.conftest import by_name


def test_sample(bench):
    result, out = bench("sample", "--repeat", "1")
    names = [row["name"] for row in result["peers"]]
    assert all(len(row["speeds"]) == 1 and row["chain"] > 0 for row in result["peers"])
    assert {"ours, float32", "ours, int8", sample.PLAIN, sample.MINLM, "nanoGPT 4 x 16, context 64"} <= {*names}
    assert [row["name"] for row in result["batch"]] == ["ours, float32", "ours, bfloat16", "ours, int8"]
    assert [(row["name"], row["generated"]) for row in result["length"]] == [
        *(("mingru", 20), ("mingru", 40), ("attention", 20), ("attention", 40))
    ]
    assert "batch 5 over batch 1" in out


def test_sample_refuses_what_differs(bench, wrong_steps):
    result, _ = bench("sample", "--mixers", "mingru")
    ours = [row for part in ("peers", "batch", "length") for row in result[part] if row["name"].startswith(("o", "m"))]
    ours = [row for row in ours if row["name"] != sample.MINLM]
    assert all("forward against steps" in row["skipped"] for row in ours)


def test_a_packed_model_that_differs_is_refused(bench, monkeypatch):
    from lm.sampling.packed import Packed

    right = Packed.step
    monkeypatch.setattr(Packed, "step", lambda self, ids, state: right(self, (ids + 1) % 65, state))
    result, _ = bench("sample", "--parts", "batch")
    assert all("forward against steps" in row["skipped"] for row in result["batch"])


def test_writers_go_on_where_they_are():
    from lm.bench import models

    writer, same = (sample.Writer(models.make("mingru", 16, 1, sample.VOCABULARY), 2, 50) for _ in range(2))
    writer(120)
    same(70)
    other = same.copy()
    same()
    states = [[one.decoder.position(row).logits for row in range(2)] for one in (writer, same, other)]
    assert (states[0][0] == states[1][0]).all() and (states[0][1] == states[1][1]).all()
    assert (states[0][0] != states[2][0]).any()


def test_ratios(bench, timings, monkeypatch):
    """100 characters a call, or 2 where each takes long."""
    monkeypatch.setattr(peak, "multiply_adds", lambda dtype: 1e6)
    timings({"ours, float32": [0.5, 1.0, 4.0], sample.CHAIN: [0.25], sample.MINLM: [0.5], "5": [2.0], "1": [0.5]}, 4.0)
    result, out = bench("sample", "--parts", "peers", "batch")
    rows = by_name(result["peers"])
    model = models.make("mingru", 16, 1, 65)
    assert rows["ours, float32"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert rows["ours, float32"]["speeds"] == [200, 100, 25] and re.search(r"float32 .* 100 +\[25-200\]", out)
    ratios = [rows["ours, float32"][key] for key in ("chain", "minlm", "nanogpt")]
    assert ratios == [100 / 8, 100 / 4, 100 / 0.5]
    batch = result["batch"][0]
    assert (batch["one"], batch["many"], batch["ratio"]) == ([200], [250], 1.25)
    matrices = sum(
        p.numel()
        for name, p in model.named_parameters()
        if name.endswith("weight") and p.dim() == 2 and "embedding" not in name and "convolution" not in name
    )
    assert batch["flops_per_second"] == 2 * matrices * 250
    assert batch["of_sgemm"] == pytest.approx(2 * matrices * 250 / (2 * 1024**3 / 4))
    assert batch["of_peak"] == pytest.approx(2 * matrices * 250 / (1e6 / 4)) and "of peak" in out


def test_peers_draw_at_the_temperature():
    drawn = []

    def logits(ids, memory):
        drawn.append(ids[0, -1].item())
        return torch.tensor([[[0.0, sample.TEMPERATURE * math.log(3)]]]), None

    torch.manual_seed(0)
    sample.sampler(logits, 1, 2000)()
    assert sum(drawn) / 2000 == pytest.approx(0.75, abs=0.04)  # four deviations


def test_time_and_memory_after_a_long_text(bench, timings, monkeypatch):
    timings({"20": [2.0], "40": [3.0]})
    written, write = [], sample.Writer.__call__
    monkeypatch.setattr(sample.Writer, "__call__", lambda self, chars=0: written.append(chars) or write(self, chars))
    monkeypatch.setattr(sample, "resident", iter([1_000_000, 3_500_000]).__next__)
    result, out = bench("sample", "--parts", "length", "--mixers", "mingru")
    first, last = result["length"]
    assert written[:2] == [20, 20]
    assert (first["seconds"], last["seconds"], last["ratio"]) == ([0.02], [0.03], 1.5)  # of 100 characters
    assert (first["growth"], last["growth"]) == (0, 2_500_000) and re.search(r"\n.* 1\.500 +2\.5\n", out)
