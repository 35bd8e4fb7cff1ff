"""`char-lm bench context`."""

import pytest

from lm.bench import corpus


def test_each_context_is_trained_whole_and_in_chunks(bench, monkeypatch):
    calls = []

    def train(folder, name, steps, characters, more):
        calls.append((name, steps, characters, more[more.index("--trainer.chunk") + 1]))
        return {"start": 1.0, "memory": 300.0, "speed": 20_000.0 / len(calls)}

    monkeypatch.setattr(corpus, "train", train)
    options = ["--contexts", "100", "1000", "--chunk", "100", "--whole", "100", "--characters", "2000"]
    result, out = bench("context", *options)
    assert calls == [("100-0", 20, 100, "0"), ("1000-100", 3, 1000, "100")]
    assert [row["slower"] for row in result["results"]] == [1.0, 2.0]
    assert out.rstrip().splitlines()[-1].split() == ["1,000", "100", "300", "10,000", "2.00", "x"]


@pytest.mark.slow
def test_a_real_run(bench):
    result, _ = bench("context")
    assert [(row["name"], row["chunk"]) for row in result["results"]] == [("64", 0), ("256", 0), ("256", 64)]
