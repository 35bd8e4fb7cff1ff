"""`char-lm bench sample` at tiny sizes."""

from lm.bench import sample


def test_sample(bench):
    result, out = bench("sample")
    names = [row["name"] for row in result["peers"]]
    assert all(len(row["speeds"]) == 2 and row["chain"] > 0 for row in result["peers"])
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
