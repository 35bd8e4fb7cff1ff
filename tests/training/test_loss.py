"""Losses over a split against a loop over its characters."""

import numpy as np
import pytest
import torch

from lm.config.options import ModelConfig
from lm.corpora.copying import IGNORED, Copying
from lm.model import LanguageModel
from lm.training.loss import copying_answers, nll, score, streaming_loss, windowed_loss


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = ModelConfig(width=16, layers=2, residual_init=1.0)
    config.options.gate_bias = 4.0  # a long memory: its loss is noticed
    model = LanguageModel(11, config).eval()
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


def test_a_text_longer_than_a_piece_is_read_as_one_sequence(model):
    ids = np.random.default_rng(1).integers(0, 11, 4096 + 60)
    with torch.no_grad():
        logits, _ = model(torch.from_numpy(ids[None, :-1]))
    expected = torch.nn.functional.cross_entropy(logits[0], torch.from_numpy(ids[1:])).item()
    assert streaming_loss(model, ids) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("carry", [False, True])
def test_score_weighs_each_target_equally_whatever_its_piece(model, carry):
    random = np.random.default_rng(2)
    pieces = [(random.integers(0, 11, (1, T)), random.integers(0, 11, (1, T))) for T in (5, 12, 1)]
    pieces[0][1][0, 2:4] = model(torch.from_numpy(pieces[0][0]))[0][0, 2:4].argmax(-1)  # two right answers at least
    pieces[1][1][0, :7] = IGNORED
    losses, right, state = [], 0, None
    for x, y in pieces:
        with torch.no_grad():
            logits, new = model(torch.from_numpy(x), state)
        state = new if carry else None
        table = logits[0].double().softmax(-1)
        best = table.argmax(-1).tolist()
        losses += [-table[t, y[0, t]].log().item() for t in range(len(best)) if y[0, t] != IGNORED]
        right += sum(best[t] == y[0, t] for t in range(len(best)))
    assert len(losses) == 11 and right >= 2
    loss, found = score(model, pieces, carry)
    assert loss == pytest.approx(sum(losses) / 11, rel=1e-5) and found.shape == (11,) and found.sum() == right
    with torch.device("meta"):  # pieces go to the model's device, not to torch's default
        assert torch.equal(score(model, pieces, carry)[1], found)


@pytest.mark.parametrize("chunk", [64, 10])
def test_copying_is_scored_on_the_answers_of_all_held_out_problems(monkeypatch, chunk):
    monkeypatch.setattr("lm.training.loss.CHUNK", chunk)  # the second cuts through the answers
    problems = Copying(context=22, tokens=3, vocabulary=10)
    torch.manual_seed(0)
    model = LanguageModel(10, ModelConfig(width=16, layers=1, residual_init=1.0)).eval()
    torch.nn.init.normal_(model.head.weight)
    (pieces,) = problems.validation_pieces()
    x, y = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*pieces, strict=True))
    assert x.shape == (512, 22) and (y[:, :19] == IGNORED).all()
    with torch.no_grad():
        logits = model(x)[0][:, 19:]
    loss, right = copying_answers(model, problems)
    assert loss == pytest.approx(-logits.log_softmax(-1).gather(-1, y[:, 19:, None]).mean().item(), rel=1e-5)
    assert torch.equal(right, logits.argmax(-1) == y[:, 19:])
    assert 0 < right.sum() < right.numel()
