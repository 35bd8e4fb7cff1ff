"""Losses over a split against a loop over its characters."""

import numpy as np
import pytest
import torch

from lm.config.options import ModelConfig
from lm.model import LanguageModel
from lm.training.loss import nll, streaming_loss, windowed_loss


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = LanguageModel(11, ModelConfig(width=16, layers=2)).eval()
    torch.nn.init.normal_(model.head.weight)
    return model


def by_hand(model, ids, context):
    """Each character's loss given its window so far, one at a time."""
    losses = []
    with torch.no_grad():
        for i in range(1, len(ids)):
            start = (i - 1) // context * context
            logits = model(torch.tensor(ids[start:i].astype(np.int64))[None])[0][0, -1]
            losses.append(-logits.log_softmax(-1)[int(ids[i])].item())
    return sum(losses) / len(losses)


def test_windowed_and_streaming_equal_a_plain_loop(model):
    ids = np.random.default_rng(0).integers(0, 11, 123).astype(np.uint16)
    assert windowed_loss(model, ids, 20) == pytest.approx(by_hand(model, ids, 20), rel=1e-5)
    assert streaming_loss(model, ids) == pytest.approx(by_hand(model, ids, len(ids)), rel=1e-5)


def test_the_loss_is_computed_in_float32():
    logits = torch.tensor([[[300.0, 0.0]]], dtype=torch.bfloat16)
    assert nll(logits, torch.tensor([[1]])).item() == pytest.approx(300)
    assert nll(logits, torch.tensor([[0]])).dtype == torch.float32
