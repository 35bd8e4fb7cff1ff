"""`char-lm bench overhead` at tiny sizes."""

import pytest

from lm.bench import overhead
from lm.config.options import Config, ModelConfig
from lm.model import LanguageModel
from tests import commands


@pytest.mark.slow
def test_both_train_the_same_model(bench):
    result, out = bench("overhead", "--steps", "4", "--repeat", "1")
    assert len(result["bare"]) == len(result["train"]) == 1 and min(result["bare"] + result["train"]) > 0
    assert "char-lm train / bare loop = " in out


def test_the_ratio_is_that_of_the_medians(bench, monkeypatch):
    times = {"bare": iter([0.1, 0.5, 0.2]), "train": iter([0.3, 0.1, 0.6])}
    model = LanguageModel(5, ModelConfig(width=8, layers=1))
    monkeypatch.setattr(overhead, "bare_loop", lambda config: (next(times["bare"]), model))
    monkeypatch.setattr(overhead, "whole_command", lambda steps, words: (next(times["train"]), model))
    result, out = bench("overhead", "--repeat", "3")
    assert result["ratio"] == pytest.approx(1.5) and "char-lm train / bare loop = 1.500" in out
    assert "bare loop        200.0  100.0, 500.0, 200.0" in out


def test_the_first_tenth_of_the_steps_is_not_counted(monkeypatch):
    """20 steps: two of 10 s, then 18 of 0.5 s."""
    clock = iter([0.0, 10.0, 20.0, *(20.5 + 0.5 * step for step in range(18))])
    monkeypatch.setattr(overhead.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(overhead, "train", lambda model, corpus, config: range(20))
    seconds, model = overhead.bare_loop(Config(model=ModelConfig(width=8, layers=1)))
    assert seconds == 0.5 and model.training


def test_models_that_differ_are_refused(monkeypatch, capsys):
    models = [LanguageModel(5, ModelConfig(width=8, layers=1)) for _ in range(2)]
    monkeypatch.setattr(overhead, "bare_loop", lambda config: (1.0, models[0]))
    monkeypatch.setattr(overhead, "whole_command", lambda steps, words: (1.0, models[1]))
    assert commands.bench(["overhead", "--quick"]) == 2
    assert "char-lm train and the bare loop differ in embedding.weight" in capsys.readouterr().err
