"""`char-lm bench parameters` at tiny sizes."""

import pytest


def test_parameters_are_the_papers(bench):
    result, out = bench("parameters")
    assert len(result["results"]) == 8 and "+ down-projection" in out
    for row in result["results"]:
        ours, theirs = row["counts"]["weights"]
        assert ours / theirs == pytest.approx(row["paper"], abs=0.0051)
    width = 32
    counts = result["results"][1]["counts"]  # minGRU and GRU at expansion 2: their hidden channels are 64
    assert counts["weights"] == [2 * 64 * width, 3 * 64 * (width + 64)]
    assert counts["+ biases"] == [2 * 64 * (width + 1), 3 * 64 * (width + 64 + 2)]
    assert counts["+ down-projection"] == [n + 64 * width for n in counts["weights"]]


def test_parameters_refuse_cells_of_different_size(bench, monkeypatch):
    from lm.bench import models

    right = models.make_mixer
    monkeypatch.setattr(models, "make_mixer", lambda name, width, **options: right(name, width + 2 * (name == "gru")))
    result, out = bench("parameters")
    assert "differs" in result["results"][0]["skipped"] and "differs" in out
