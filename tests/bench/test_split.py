"""`char-lm bench split`."""

import pytest

from lm.bench import corpus


def test_activations_are_what_the_context_adds(bench, monkeypatch):
    calls = []

    def train(folder, name, steps, more):
        processes, context = (int(more[more.index(option) + 1]) for option in ("--trainer.devices", "--data.context"))
        calls.append((processes, context, steps))
        return {"memory": 300.0 + context / processes, "loss": 2.0 + 2e-6 * (processes - 1)}

    monkeypatch.setattr(corpus, "train", train)
    result, out = bench("split", "--processes", "1", "4", "--context", "6400", "--steps", "5")
    assert calls == [(1, 6400, 5), (1, 100, 5), (4, 6400, 5), (4, 100, 5)]
    assert [row["share"] for row in result["results"]] == [1.0, 0.25]
    assert out.rstrip().splitlines()[-1].split() == ["4", "1,900", "1,575", "0.25", "2.000006", "3e-06"]


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(bench, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    result, _ = bench("split")
    one, two = result["results"]
    assert (one["name"], two["name"]) == ("1", "2") and one["loss"] > 1 and two["difference"] < 1e-5
