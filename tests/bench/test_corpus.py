"""`char-lm bench corpus`."""

import os
import subprocess

import numpy as np
import pytest

from lm.bench import corpus


def test_every_size_is_trained_on_twice(bench, monkeypatch):
    calls, sizes = [], []

    def train(folder, name, steps):
        calls.append(name)
        sizes.append((folder / "text.txt").stat().st_size)
        speed = {"first": 10_000.0, "second": 12_345.6}[name] / (1 + len(calls) // 3)
        return {"start": {"first": 9.25, "second": 3.5}[name], "memory": 321.4, "speed": speed}

    monkeypatch.setattr(corpus, "train", train)
    result, out = bench("corpus", "--megabytes", "1", "6")
    assert calls == ["first", "second"] * 2 and sizes == [10**6] * 2 + [6 * 10**6] * 2
    assert [(row["first"], row["second"]) for row in result["results"]] == [(9.25, 3.5)] * 2
    assert out.rstrip().splitlines()[-1].split() == ["6", "9.2", "3.5", "321", "6,173", "0.50", "x"]


@pytest.mark.slow
def test_a_real_training(tmp_path):
    corpus.make_text(tmp_path / "text.txt", 10**6)
    found = corpus.train(tmp_path, "a", 6)
    assert 1 < found["start"] < 100 and 100 < found["memory"] < 2000 and found["speed"] > 100


def test_children_are_found():
    before = corpus.children(os.getpid())
    with subprocess.Popen(["sleep", "60"]) as child:
        assert corpus.children(os.getpid()) == [*before, child.pid]
        child.kill()
    assert corpus.children(2**30) == []


def test_anonymous_memory_is_what_is_allocated():
    before = corpus.anonymous_memory(os.getpid())
    block = np.ones(10**8, dtype=np.uint8)
    assert 90 < corpus.anonymous_memory(os.getpid()) - before < 120 and block[-1] == 1
    assert corpus.anonymous_memory(2**30) == 0
