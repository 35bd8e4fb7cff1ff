"""Options for little data: patience, cycles, weight decay that changes, tuning, distillation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lm.analysis import evaluate
from lm.config.options import Config, DataConfig, ModelConfig, OptimConfig
from lm.corpora.corpus import load_corpus
from lm.model import Ensemble, LanguageModel
from lm.runs.checkpoint import read_checkpoint
from lm.runs.folder import Run
from lm.runs.load import load
from lm.training import distill
from lm.training.distill import predict
from lm.training.loop import make_batch, train, training_loss
from lm.training.loss import dynamic_loss
from lm.training.optim import lr_factor, make_optimizer, set_learning_rate
from tests import commands
from tests.training.conftest import rows


@pytest.fixture
def noise(tmp_path):
    """Random letters, which can be learned by heart only, so that the validation loss soon rises."""
    path = tmp_path / "noise.txt"
    letters = np.random.Generator(np.random.PCG64(0)).integers(8, size=600)
    path.write_text("".join("abcdefgh"[i] for i in letters))
    return path


PATIENT = "--optim.schedule constant --optim.decay 0 --eval.every 5 --trainer.max_steps 400 --trainer.patience 12"


def test_patience_ends_a_run(run_train, noise, capsys):
    run = run_train("a", "--data.corpus", str(noise), *PATIENT.split())
    losses = {row["step"]: row["val/loss"] for row in rows(run) if "val/loss" in row}
    best = min(losses, key=losses.__getitem__)
    assert best < max(losses) < 400 and max(losses) == min(step for step in losses if step - best >= 12)
    assert Run(run).summary()["status"] == "finished" and Run(run).summary()["step"] == max(losses)
    assert "400 steps, or 12 steps without a new best" in capsys.readouterr().err
    assert read_checkpoint(run / "checkpoints" / "best.ckpt")["global_step"] == best
    before = (run / "metrics.csv").read_bytes()
    assert commands.train(["--resume", str(run)]) == 0
    assert "is finished; to go on" in capsys.readouterr().err and (run / "metrics.csv").read_bytes() == before
    assert commands.train(["--resume", str(run), "--trainer.patience", "11"]) == 2
    assert "or --trainer.patience" in capsys.readouterr().err
    assert commands.train(["--resume", str(run), "--trainer.patience", "20"]) == 0
    assert rows(run)[-1]["step"] == best + 20


def test_without_patience_a_run_goes_on(run_train, noise):
    run = run_train("a", "--data.corpus", str(noise), *PATIENT.split()[:-4], "--trainer.max_steps", "60")
    assert rows(run)[-1]["step"] == 60


def test_streaming_validation_can_be_left_out(run_train):
    run = run_train("a", "--trainer.max_steps", "4", "--eval.streaming", "false")
    values = [row for row in rows(run) if "val/loss" in row]
    assert values and not any("val/loss_streaming" in row for row in values)
    assert [*Run(run).summary()["best"]] == ["val/loss"]


def test_cycles_repeat_the_schedule():
    config = OptimConfig(schedule="linear", warmup_steps=0, cycles=4)
    factors = [lr_factor(config, 100, progress) for progress in (0.0, 0.125, 0.2499, 0.25, 0.5, 0.875, 1.0, 2.0)]
    assert factors == pytest.approx([1, 0.5, 0.0004, 1, 1, 0.5, 0, 0], abs=1e-9)


def test_each_cycle_leaves_a_checkpoint(run_train):
    """The same as those of shorter budgets, but for the number of cycles; the last is last.ckpt."""
    options = ["--eval.every", "4", "--optim.warmup_steps", "0"]
    run = run_train("a", "--trainer.max_steps", "12", "--optim.cycles", "3", *options)
    names = sorted(path.name for path in (run / "checkpoints").glob("cycle*"))
    assert names == ["cycle1.ckpt", "cycle2.ckpt"]
    steps = [read_checkpoint(run / "checkpoints" / name)["global_step"] for name in [*names, "last.ckpt"]]
    assert steps == [4, 8, 12]
    short = run_train("b", "--trainer.max_steps", "4", *options)
    ours, theirs = (load(path)[0].state_dict() for path in (run / "checkpoints" / "cycle1.ckpt", short))
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert read_checkpoint(run / "checkpoints" / "previous.ckpt")["global_step"] == 8


def test_weight_decay_changes_linearly():
    model = LanguageModel(9, ModelConfig(width=8, layers=1))
    config = OptimConfig(weight_decay=0.4, final_weight_decay=0.1)
    optimizer = make_optimizer(model, config)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.4, 0.0, 0.4]
    for progress, decay in ((0.0, 0.4), (0.5, 0.25), (1.0, 0.1), (1.5, 0.1)):
        set_learning_rate(optimizer, config, 7, progress)
        assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([decay, 0, decay])


def test_tuning_leaves_the_held_out_tenth_alone():
    """The whole text is only counted; what is trained on and validated on ends where the held-out tenth begins."""
    whole, part = (load_corpus(DataConfig(tuning=tuning)) for tuning in (False, True))
    n = len(whole.ids)
    assert n == 1_115_355 and len(whole.train) == 1_003_819
    assert np.array_equal(np.concatenate([part.train, part.validation]), whole.train)
    assert len(part.train) == 903_437 and part.digest == whole.digest


@pytest.fixture
def predictions(monkeypatch, tmp_path):
    """A folder of its own for the teachers' predictions."""
    monkeypatch.setattr(distill, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def trained(run_train, name, *options):
    return run_train(name, "--trainer.max_steps", "6", *options)


def test_distillation_learns_from_averaged_probabilities(run_train, predictions):
    """A step's loss and gradients beside plain torch; the run beside the loop without Lightning."""
    teachers = [str(trained(run_train, f"teacher{seed}", "--seed", str(seed))) for seed in (1, 2)]
    words = ["--distill.teachers", *teachers, "--distill.weight", "0.25", "--trainer.precision", "32"]
    run = trained(run_train, "student", *words)
    config = Run(run).config()
    text = load_corpus(config.data)
    with torch.inference_mode():
        ids = torch.from_numpy(text.train.astype(np.int64))[None]
        both = [load(teacher)[0](ids)[0].softmax(-1) for teacher in teachers]
        expected = ((both[0] + both[1]) / 2)[0]
    (cached,) = predictions.glob("teachers-*.npy")
    found = np.load(cached)
    assert found.shape == (len(text.train), len(text.tokenizer)) and found.dtype == np.float16
    np.testing.assert_allclose(found[:-1], expected[:-1], atol=1e-3)

    with_teacher = replace(text, teacher=found)
    batch = make_batch(with_teacher, config, 3, 0)
    torch.manual_seed(0)
    model = LanguageModel(len(text.tokenizer), config.model)
    torch.nn.init.normal_(model.head.weight)
    scores = model(batch.x)[0].log_softmax(-1)
    plain = -scores.gather(-1, batch.y[..., None]).mean()
    assert batch.teacher is not None
    p = batch.teacher.float()
    kl = (p * (p.clamp_min(1e-30).log() - scores)).sum(-1).mean()
    torch.testing.assert_close(training_loss(model, batch, {}, config), 0.75 * plain + 0.25 * kl)

    torch.manual_seed(config.seed)
    model = LanguageModel(len(text.tokenizer), config.model)
    for _ in train(model, with_teacher, config):
        pass
    weights = load(run / "checkpoints" / "last.ckpt")[0].state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    other = load(trained(run_train, "alone", "--trainer.precision", "32"))[0].state_dict()
    assert not torch.equal(other["head.weight"], weights["head.weight"])


def test_a_damaged_cache_of_predictions_is_computed_again(run_train, predictions):
    teacher = str(trained(run_train, "teacher"))
    trained(run_train, "a", "--distill.teachers", teacher)
    (path,) = predictions.glob("teachers-*.npy")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100] + bytes(100))
    trained(run_train, "b", "--distill.teachers", teacher)
    assert path.read_bytes() == whole


def test_predictions_are_those_after_each_character():
    torch.manual_seed(0)
    models = [LanguageModel(5, ModelConfig(width=8, layers=1, mixer=name)).eval() for name in ("mingru", "attention")]
    for model in models:
        torch.nn.init.normal_(model.head.weight)
    ids = np.arange(9000) % 5
    found = predict(models, ids)
    with torch.no_grad():
        wanted = sum(model(torch.from_numpy(ids[None, :-1]))[0][0].softmax(-1) for model in models) / 2
    np.testing.assert_allclose(found[:-1], wanted, atol=1e-3)
    assert not found[-1].any()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--distill.teachers", "no-such-run"], "no-such-run"),
        (["--distill.teachers", "pretrained"], "another vocabulary"),
        (
            ["--data.corpus", "tiny_shakespeare", "--data.tuning", "true", "--distill.teachers", "pretrained"],
            "may hold",
        ),
        (["--data.corpus", "selective_copying", "--distill.teachers", "pretrained"], "no text for teachers"),
    ],
)
def test_teachers_that_cannot_be(run_train, capsys, tmp_path, options, error):
    assert not run_train("a", *options, code=2).exists()
    printed = capsys.readouterr().err
    assert error in printed and printed.count("error:") == 1


def test_a_run_starts_from_the_weights_of_another(run_train, capsys, tmp_path):
    first = trained(run_train, "first")
    second = run_train(
        "second", "--init", str(first), "--trainer.max_steps", "1", "--optim.muon_lr", "1e-9", "--optim.lr", "1e-9"
    )
    ours, theirs = (load(run / "checkpoints" / "last.ckpt")[0].state_dict() for run in (second, first))
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-6, rtol=0)
    assert not run_train("third", "--init", str(first), "--model.width", "16", code=2).exists()
    assert "do not fit this run: embedding.weight is float32 [59, 32], not float32 [59, 16]" in capsys.readouterr().err
    (tmp_path / "other.txt").write_text("ab" * 500)
    assert not run_train("fourth", "--init", str(first), "--data.corpus", str(tmp_path / "other.txt"), code=2).exists()
    assert "do not fit this run: its vocabulary has other characters" in capsys.readouterr().err
    (tmp_path / "same.txt").write_text("".join(chr(200 + i) for i in range(58)) * 20)
    assert not run_train("fifth", "--init", str(first), "--data.corpus", str(tmp_path / "same.txt"), code=2).exists()
    assert "other characters" in capsys.readouterr().err


def test_the_ensemble_averages_probabilities(capsys, run_train):
    runs = [str(trained(run_train, name, "--seed", name[-1])) for name in ("a1", "a2")]
    models = [load(run)[0] for run in runs]
    x = torch.randint(9, (2, 50))
    with torch.no_grad():
        scores, states = Ensemble(models)(x)
        wanted = (models[0](x)[0].softmax(-1) + models[1](x)[0].softmax(-1)) / 2
        torch.testing.assert_close(scores.exp(), wanted)
        again, _ = Ensemble(models)(x, states)
        second = (models[0](x, states[0])[0].softmax(-1) + models[1](x, states[1])[0].softmax(-1)) / 2
    torch.testing.assert_close(again.exp(), second)
    assert commands.evaluate([*runs, "--ensemble"]) == 0
    out = capsys.readouterr().out
    assert "ensemble of 2" in out and out.count("streaming") == 3


def test_dynamic_evaluation_scores_before_it_learns():
    """Against the same in plain torch: the loss of a piece does not depend on the characters after it."""
    torch.manual_seed(0)
    model = LanguageModel(5, ModelConfig(width=8, layers=1)).eval()
    torch.nn.init.normal_(model.head.weight)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    ids = np.random.Generator(np.random.PCG64(0)).integers(5, size=100)
    found = dynamic_loss(model, ids, 0.1, characters=30)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    total, state, text = 0.0, model.init_state(1), torch.from_numpy(ids)
    for start in range(0, 99, 30):
        x, y = text[start : min(start + 30, 99)], text[start + 1 : start + 31]
        logits, state = model(x[None], tuple(tuple(t.detach() for t in layer) for layer in state))
        loss = torch.nn.functional.cross_entropy(logits[0], y)
        total += loss.item() * len(y)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p -= 0.1 * g
    assert found == pytest.approx(total / 99, rel=1e-5)


def test_evaluate_prints_the_dynamic_loss(capsys, run_train):
    run = str(trained(run_train, "a"))
    assert commands.evaluate([run, "--dynamic", "0.01"]) == 0
    line = capsys.readouterr().out.splitlines()[-1].split()
    model, _ = load(run)
    loss = dynamic_loss(model, load_corpus(Run(trained(run_train, "b")).config().data).validation, 0.01)
    assert line[:2] == ["dynamic", f"{loss:.4f}"] and line[3] == f"{loss / math.log(2):.4f}"
    assert Config().distill.teachers == [] and evaluate.Options([run]).dynamic is None
