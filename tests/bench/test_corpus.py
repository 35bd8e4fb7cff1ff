"""`char-lm bench corpus`."""

import os
import subprocess

import numpy as np
import pytest

from lm.bench import corpus


def test_sizes_are_trained_on_once_and_then_in_turns(bench, monkeypatch):
    calls = []

    def train(folder, name, steps):
        size = (folder / "text.txt").stat().st_size // 10**6
        calls.append((name, size))
        start = 9.25 if name == "first" else 3.5 + int(name)
        return {"start": start, "memory": 321.4, "speed": 1e9 if name == "first" else (12_000.0 + int(name)) / size}

    monkeypatch.setattr(corpus, "train", train)
    result, out = bench("corpus", "--megabytes", "1", "6", "--repeat", "3")
    assert calls == [(name, size) for name in ("first", "0", "1", "2") for size in (1, 6)]
    assert [(row["first"], row["second"]) for row in result["results"]] == [(9.25, 4.5)] * 2
    assert out.rstrip().splitlines()[-1].split() == ["6", "9.2", "4.5", "321", "2,000", "[2,000-2,000]", "0.17", "x"]


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
