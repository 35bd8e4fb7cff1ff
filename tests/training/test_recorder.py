"""Each column of metrics.csv and each entry of summary.json against a value that is worked out here, in plain torch."""

import json
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from lm import load
from lm.config.options import Config
from lm.corpora.copying import IGNORED, Copying
from lm.corpora.sources import read_text
from lm.files import DATA
from lm.model import LanguageModel
from lm.runs.folder import Run
from lm.training import clock
from lm.training.loss import streaming_loss, windowed_loss
from lm.training.main import STARTED
from tests.training.conftest import rows

STEPS, CONTEXT, BATCH = 12, 32, 4
OPTIMISER = (
    "--data.sampling windows --optim.name adamw --optim.lr 0.01 --optim.beta1 0.8 --optim.beta2 0.95 "
    "--optim.weight_decay 3 --optim.clip 0.5 --optim.warmup_steps 3 --optim.final_lr 0.2 --optim.decay 0.5"
)
TIMES = ("train_seconds", "chars_per_second")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """50,000 characters: their validation tenth is more than one piece of the stream, and more than one of windows."""
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text(read_text(DATA / "tiny_shakespeare.txt.xz")[:50_000], encoding="utf-8")
    return path


@pytest.fixture
def ticks(monkeypatch):
    """Replace the training clock's time by one that goes on by a second each time it is read."""
    seconds = iter(range(10**6))
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: float(next(seconds))))


def encode(path):
    """The ids of a text, by the order of its characters."""
    text = path.read_text(encoding="utf-8")
    alphabet = {c: i for i, c in enumerate(sorted(set(text)))}
    return np.array([alphabet[c] for c in text])


def rate(schedule: str, step: int, steps: int) -> float:
    """The learning rate of a step with OPTIMISER: 0.01, three steps of warm-up, a fifth at the end."""
    progress = step / steps
    shape = {
        "linear": 1 - progress,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
        "constant": min(1.0, 2 * (1 - progress)),  # decays in the second half
    }
    return 0.01 * min(1.0, (step + 1) / 3) * (0.2 + 0.8 * shape[schedule])


def plain_training(config: Config, ids: np.ndarray, schedule: str):
    """Train with torch's own AdamW. Returns the model, and the loss, the rate and the gradient's norm of each step."""
    torch.manual_seed(config.seed)
    model = LanguageModel(len(np.unique(ids)) + 1, config.model)
    names = dict(model.named_parameters())
    matrices = [p for name, p in names.items() if p.dim() == 2 and not name.endswith("convolution.weight")]
    others = [p for p in names.values() if all(p is not matrix for matrix in matrices)]
    groups = [{"params": matrices, "weight_decay": 3.0}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-8)
    train, found = torch.from_numpy(ids[:45_000]), []
    for step in range(STEPS):
        random = [np.random.Generator(np.random.Philox(key=config.seed, counter=[0, 0, step, r])) for r in range(BATCH)]
        starts = [int(generator.integers(45_000 - CONTEXT)) for generator in random]
        x = torch.stack([train[start : start + CONTEXT + 1] for start in starts])
        loss = cross_entropy(model(x[:, :-1])[0].flatten(0, 1), x[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in names.values()))
        for p in names.values():
            p.grad *= min(1.0, 0.5 / norm)
        for group in optimizer.param_groups:
            group["lr"] = rate(schedule, step, STEPS)
        optimizer.step()
        found.append((loss.item(), rate(schedule, step, STEPS), norm))
    return model, found


@torch.no_grad()
def plain_validation(model: LanguageModel, ids: np.ndarray) -> dict[str, float]:
    """Losses of the last tenth: window by window, and as one sequence at once."""
    x, total = torch.from_numpy(ids[45_000:]), 0.0
    for start in range(0, len(x) - 1, CONTEXT):
        window = x[start : start + CONTEXT + 1]
        total += cross_entropy(model(window[None, :-1])[0][0], window[1:], reduction="sum").item()
    loss = total / (len(x) - 1)
    streaming = cross_entropy(model(x[None, :-1])[0][0], x[1:]).item()
    return {
        "val/loss": loss,
        "val/loss_streaming": streaming,
        "val/bpc": loss / math.log(2),
        "val/perplexity": math.exp(loss),
    }


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_every_column_of_a_text(run_train, text, ticks, schedule):
    words = f"--data.corpus {text} {OPTIMISER} --optim.schedule {schedule} --seed 7 --log.every 1 --eval.every 5"
    run = run_train("a", *words.split(), "--trainer.max_steps", str(STEPS))
    ids, config = encode(text), Run(run).config()
    model, expected = plain_training(config, ids, schedule)
    training = [row for row in rows(run) if "train/loss" in row]
    for name, column in zip(("train/loss", "lr", "grad_norm"), zip(*expected, strict=True), strict=True):
        assert [row[name] for row in training] == pytest.approx(list(column), rel=2e-3 if name == "grad_norm" else 2e-4)
    assert any(row["grad_norm"] > 0.5 for row in training)  # so that clipping shows
    for name, value in plain_validation(load(run / "checkpoints" / "last.ckpt")[0], ids).items():
        assert rows(run)[-1][name] == pytest.approx(value, rel=1e-5), name
    assert rows(run)[-1]["val/loss_streaming"] != pytest.approx(rows(run)[-1]["val/loss"], rel=1e-4)
    for name, p in model.state_dict().items():
        trained = load(run / "checkpoints" / "last.ckpt")[0].state_dict()[name]
        torch.testing.assert_close(trained, p, rtol=1e-2, atol=1e-3, msg=name)
    # The clock is read at the start, after each step, and before and after each validation: 12 + 2 seconds.
    seconds = [step + (step > 5) + (step > 10) for step in range(1, 13)]
    assert [row["train_seconds"] for row in training] == seconds
    speeds = [BATCH * CONTEXT / (after - before) for before, after in zip([0, *seconds], seconds, strict=False)]
    assert [row["chars_per_second"] for row in training] == pytest.approx(speeds, rel=1e-5)
    for row in rows(run):
        assert row["chars"] == row["step"] * BATCH * CONTEXT
        assert row["flops"] == pytest.approx(row["chars"] * 3 * model.flops(CONTEXT), rel=1e-5)
    assert {name for row in rows(run) for name in row} == {
        *("step", "chars", "train_seconds", "flops", "train/loss", "lr", "grad_norm", "chars_per_second"),
        *("val/loss", "val/loss_streaming", "val/bpc", "val/perplexity"),
    }


def test_rows_have_the_mean_loss_since_the_last_one(run_train):
    words = "--trainer.max_steps 7 --trainer.accumulate 2 --model.dropout 0.1"
    single, pairs = (
        run_train("single", *words.split(), "--log.every", "1"),
        run_train("pairs", *words.split(), "--log.every", "3"),
    )
    losses = [row["train/loss"] for row in rows(single) if "train/loss" in row]
    found = [(row["step"], row["train/loss"]) for row in rows(pairs) if "train/loss" in row]
    expected = [(3, np.mean(losses[:3])), (6, np.mean(losses[3:6])), (7, losses[6])]
    assert found == [(step, pytest.approx(loss, rel=1e-5)) for step, loss in expected]


def test_a_budget_in_minutes_follows_the_clock(run_train, ticks):
    """A second a step: ten steps in a sixth of a minute, and the schedule goes by the seconds."""
    words = f"{OPTIMISER} --optim.schedule linear --trainer.max_minutes {1 / 6} --log.every 1 --eval.every 100"
    training = [row for row in rows(run_train("a", *words.split())) if "train/loss" in row]
    assert [row["step"] for row in training] == list(range(1, 11))
    assert [row["lr"] for row in training] == pytest.approx([rate("linear", step, 10) for step in range(10)])


def test_accuracy_and_loss_of_a_synthetic_task(run_train, monkeypatch):
    words = "--data.corpus selective_copying --data.copying.tokens 4 --data.copying.vocabulary 6 --trainer.max_steps 30"
    run = run_train("a", *words.split(), "--eval.every", "15")
    model, _ = load(run / "checkpoints" / "last.ckpt")
    right, loss = [], []
    monkeypatch.setattr("lm.corpora.copying.AT_ONCE", 1)  # problem by problem
    for x, y in Copying(32, 4, 6).validation_pieces()[0]:
        with torch.no_grad():
            logits, answers = model(torch.from_numpy(x))[0][0, -4:], torch.from_numpy(y)[0, -4:]
        assert (y[0, :-4] == IGNORED).all()
        right += (logits.argmax(-1) == answers).tolist()
        loss += (-logits.log_softmax(-1)[range(4), answers]).tolist()
    last = rows(run)[-1]
    assert len(right) == 512 * 4 and last["val/accuracy"] == pytest.approx(np.mean(right), rel=1e-5)
    assert last["val/loss"] == pytest.approx(np.mean(loss), rel=1e-4)
    assert last["val/perplexity"] == pytest.approx(math.exp(np.mean(loss)), rel=1e-4)
    validations = [row for row in rows(run) if "val/loss" in row]
    best = json.loads((run / "summary.json").read_text())["best"]
    assert best["val/accuracy"] == pytest.approx(max(row["val/accuracy"] for row in validations), rel=1e-5)
    assert "val/loss_streaming" not in best


def test_every_entry_of_the_summary(run_train, ticks):
    """With a learning rate so high that the best validation is not the last."""
    rates = "--optim.muon_lr 0.3 --optim.lr 1 --optim.schedule constant --optim.decay 0"
    run = run_train("a", *"--trainer.max_steps 40 --eval.every 10".split(), *rates.split())
    since_import = time.monotonic() - STARTED
    summary, table = json.loads((run / "summary.json").read_text()), rows(run)
    validations = [row for row in table if "val/loss" in row]
    best = min(validations, key=lambda row: row["val/loss"])
    model, _ = load(run / "checkpoints" / "last.ckpt")
    peak = summary.pop("peak_memory_mb")
    startup = summary.pop("startup_seconds")
    assert 100 < peak < 20_000 and 0 < startup <= since_import + 0.1
    assert sum(summary.pop("startup").values()) == pytest.approx(startup, abs=0.06)
    assert summary == {
        "status": "finished",
        "bytes_per_character": 1.0,
        "mixer": "mingru",
        "parameters": sum(p.numel() for p in model.parameters()),
        "step": 40,
        "chars": 40 * BATCH * CONTEXT,
        "train_seconds": 44.0,  # a second for each step, and one before each validation
        "chars_per_second": round(40 * BATCH * CONTEXT / 44, 1),
        "best": {
            "val/loss": pytest.approx(best["val/loss"], rel=1e-5),
            "val/loss_streaming": pytest.approx(min(row["val/loss_streaming"] for row in validations), rel=1e-5),
        },
        "final": {
            "train/loss": pytest.approx([row["train/loss"] for row in table if "train/loss" in row][-1], rel=1e-5),
            "val/loss": pytest.approx(validations[-1]["val/loss"], rel=1e-5),
            "val/loss_streaming": pytest.approx(validations[-1]["val/loss_streaming"], rel=1e-5),
        },
        "device": "cpu",
        "precision": "32-true",
    }
    assert best is not validations[-1]
    named, _ = load(run / "checkpoints" / "best.ckpt")
    ids = encode(run.parent / "corpus.txt")[10_800:]
    assert windowed_loss(named, ids, CONTEXT) == pytest.approx(best["val/loss"], rel=1e-5)
    assert streaming_loss(model, ids) == pytest.approx(validations[-1]["val/loss_streaming"], rel=1e-5)


def test_samples_continue_the_prompt_and_leave_training_alone(run_train):
    words = "--trainer.max_steps 6 --eval.every 3 --model.dropout 0.2 --log.every 1"
    with_samples = run_train("with", *words.split(), "--eval.prompt", "the ", "--eval.sample_chars", "30")
    without = run_train("without", *words.split(), "--eval.sample_chars", "0")
    lines = [json.loads(line) for line in (with_samples / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6] and {line["prompt"] for line in lines} == {"the "}
    assert all(len(line["text"]) == 30 for line in lines) and (without / "samples.jsonl").read_text() == ""
    losses = [[row.get("train/loss") for row in rows(run)] for run in (with_samples, without)]
    assert losses[0] == losses[1]
