"""optim.ema: an average of the weights is validated and saved, and training goes on with the weights themselves."""

import numpy as np
import pytest
import torch

from lm.corpora import corpus as corpora
from lm.model import LanguageModel
from lm.runs.checkpoint import read_checkpoint
from lm.runs.folder import Run
from lm.runs.load import load
from lm.training.loop import train
from lm.training.loss import windowed_loss
from tests.commands import train as train_command
from tests.training.conftest import rows

OPTIONS = "--optim.ema 0.7 --trainer.precision 32 --eval.every 4 --model.dropout 0.1".split()


@pytest.mark.parametrize("accumulate", ["1", "2"])
def test_the_average_by_hand(run_train, accumulate):
    run = run_train("a", *OPTIONS, "--trainer.max_steps", "6", "--trainer.accumulate", accumulate)
    config = Run(run).config()
    corpus = corpora.load(config.data)
    torch.manual_seed(config.seed)
    model = LanguageModel(len(corpus.tokenizer), config.model)
    average: list[torch.Tensor] = []
    for step, _ in enumerate(train(model, corpus, config), 1):
        weights = [p.detach().clone() for p in model.parameters()]
        decay = min(0.7, step / (step + 9))
        average = [decay * a + (1 - decay) * w for a, w in zip(average, weights, strict=True)] if average else weights
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    for i, (name, p) in enumerate(model.named_parameters()):
        assert torch.equal(checkpoint["trained"][f"model.{name}"], p), name
        torch.testing.assert_close(checkpoint["state_dict"][f"model.{name}"], average[i])
    averaged, _ = load(run / "checkpoints" / "last.ckpt")
    validated = [row["val/loss"] for row in rows(run) if "val/loss" in row]
    assert len(validated) == 2
    losses = [windowed_loss(m, np.asarray(corpus.validation), config.data.context) for m in (averaged, model.eval())]
    assert validated[-1] == pytest.approx(losses[0], abs=1e-5) and abs(losses[1] - losses[0]) > 5e-4


def test_a_resumed_average_is_the_same_to_the_bit(run_train, tmp_path):
    whole = run_train("whole", *OPTIONS, "--trainer.max_steps", "7")
    half = run_train("half", *OPTIONS, "--trainer.max_steps", "7")
    (half / "checkpoints" / "last.ckpt").unlink()  # what is left is that of step 4
    assert train_command(["--resume", str(half)]) == 0
    one, other = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (whole, half))
    for part in ("state_dict", "trained"):
        assert all(torch.equal(value, other[part][name]) for name, value in one[part].items())
    assert any(not torch.equal(value, one["state_dict"][name]) for name, value in one["trained"].items())


def test_without_it_a_checkpoint_has_the_weights_alone(run_train):
    run = run_train("a", "--trainer.max_steps", "2")
    assert "trained" not in read_checkpoint(run / "checkpoints" / "last.ckpt")
