"""`char-lm bench step` at tiny sizes."""

import pytest
import torch

from lm.bench import main, options, peak, step, trainings
from lm.corpora.corpus import load_corpus
from lm.model import LanguageModel
from lm.training import loop
from tests import commands
from tests.conftest import SMALL

CPU = torch.device("cpu")


@pytest.fixture
def small(corpus):
    """Words and configuration of a small training of ten steps."""
    words = [*SMALL, "--data.corpus", str(corpus), "--model.dropout", "0.1", "--trainer.accumulate", "2"]
    return words, trainings.config_of(words, 10)


def test_the_parts_are_those_of_the_loop(small):
    """Both end with the same weights."""
    _, config = small
    seconds, model = step.train_in_parts(config, CPU, torch.float32)
    corpus = load_corpus(config.data)
    torch.manual_seed(config.seed)
    expected = LanguageModel(len(corpus.tokenizer), config.model).train()
    list(loop.train(expected, corpus, config))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), expected.parameters(), strict=True))
    assert tuple(seconds) == step.PARTS and min(seconds.values()) > 0


def test_the_seconds_are_per_step_after_the_first_tenth(small, monkeypatch):
    """Each part takes 1 s each time, in steps of two parts of a batch: optimiser 2 s, clipping 1 s, others 2 s."""
    clock = iter(range(10**6))
    monkeypatch.setattr(step.time, "perf_counter", lambda: float(next(clock)))
    seconds, _ = step.train_in_parts(small[1], CPU, torch.float32)
    assert seconds == {"data": 2, "forward": 2, "backward": 2, "clipping": 1, "optimiser": 2}


def test_it_is_the_training_of_the_command(small):
    """With the type of its precision, and its seconds and summary."""
    words, config = small
    seconds, trained, summary = step.whole_command(10, [*words, "--trainer.precision", "bf16-mixed"])
    assert seconds > 0 and summary["device"] == "cpu" and step.TYPES[summary["precision"]] == torch.bfloat16
    _, model = step.train_in_parts(config, CPU, torch.bfloat16)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), trained.parameters(), strict=True))


def test_rows(bench, timings, monkeypatch, small):
    """A step of 4 x 32 characters takes 1 s, half of it forward and backward."""
    words, config = small
    model = LanguageModel(20, config.model)
    parts = {"data": 0.0625, "forward": 0.125, "backward": 0.375, "clipping": 0.0625, "optimiser": 0.125}
    asked = []
    summary = {"device": "cpu", "precision": "bf16-mixed"}
    monkeypatch.setattr(
        step, "whole_command", lambda steps, given: asked.append((steps, given)) or (1.0, model, summary)
    )
    monkeypatch.setattr(step, "train_in_parts", lambda *given: asked.append(given[1:]) or (parts, model))
    monkeypatch.setattr(peak, "multiply_adds", lambda dtype: 1e9)
    timings({"sgemm": [0.5], "peak": [0.25]})
    result, out = bench("step", *words)
    assert asked == [(20, words), (CPU, torch.bfloat16)] * 2 and result["conditions"]["dtype"] == "bfloat16"
    rows = {row["name"]: row for row in result["results"]}
    assert list(rows) == [*step.PARTS, "rest", "whole step"]
    assert rows["rest"]["times"] == [0.25] * 2 and rows["rest"]["share"] == 0.25 and rows["data"]["of_peak"] is None
    flops = model.parameters_total * 4 * 32
    for name, rate in (("forward", 16 * flops), ("backward", 4 * flops / 0.375), ("whole step", 6 * flops)):
        assert rows[name]["flops_per_second"] == rate and rows[name]["of_peak"] == rate / 4e9
        assert rows[name]["of_sgemm"] == rate / (2 * 128**3 / 0.5)
    line = next(line for line in out.splitlines() if line.startswith("data"))
    assert line.split() == "data 62.5 [62.5-62.5] 6.2% - - -".split()
    assert "peak 4.0 GFLOP/s" in out and "mingru, 2 x 32" in out and "4 x 32 characters" in out


def test_trainings_that_differ_are_refused(monkeypatch, small, capsys):
    words, config = small
    models = [LanguageModel(20, config.model) for _ in range(2)]
    summary = {"device": "cpu", "precision": "32-true"}
    monkeypatch.setattr(step, "whole_command", lambda *_: (1.0, models[0], summary))
    monkeypatch.setattr(step, "train_in_parts", lambda *_: (dict.fromkeys(step.PARTS, 0.1), models[1]))
    assert commands.bench(["step", "--quick", *words]) == 2
    assert "char-lm train and the bare loop differ in embedding.weight" in capsys.readouterr().err


def test_words_of_both_commands_may_be_mixed():
    words = [
        "--model.width",
        "64",
        "--repeat",
        "3",
        "--config",
        "a",
        "--steps=5",
        "--ours",
        "--seed 1",
        "--data.corpus=b",
    ]
    arguments = main.read("step", [*words, "--optim.lr", "-1"])
    assert isinstance(arguments, options.Step) and (arguments.repeat, arguments.steps) == (3, 5)
    assert arguments.ours == "--seed 1"
    assert arguments.train == ["--model.width", "64", "--config", "a", "--data.corpus=b", "--optim.lr", "-1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--repaet 3", "unknown option --repaet"),
        ("--model.widht 3", "did you mean --model.width?"),
        ("--resume a", "--resume: a new run is timed"),
        ("extra", "unknown option extra"),
        ("--repeat 0", "--repeat must be at least 1"),
    ],
)
def test_mistakes_get_one_line(words, message, capsys):
    assert commands.bench(["step", *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(("words", "mark"), [([], "bench step"), (["--against", "HEAD"], "bench step against")])
def test_a_table_goes_into_a_document_with_its_command(monkeypatch, tmp_path, words, mark):
    monkeypatch.setattr(step, "run", lambda arguments: print("the table") or {})
    document = tmp_path / "a.md"
    document.write_text(f"<!-- {mark}: begin -->\n<!-- {mark}: end -->\n")
    assert commands.bench(["step", "--model.width", "64", *words, "--insert", str(document)]) == 0
    command = " ".join(["$ char-lm bench step", *words, "--model.width 64"])
    assert f"{command}\nthe table" in document.read_text()


@pytest.mark.slow
def test_a_step_is_taken_apart(bench, corpus):
    result, out = bench("step", "--repeat", "1", *SMALL, "--data.corpus", str(corpus))
    assert all(len(row["times"]) == 1 for row in result["results"]) and "whole step" in out
