"""Losses in nats per character."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lm.corpora.batches import Piece, stream, windows
from lm.corpora.copying import IGNORED, Copying
from lm.model import LanguageModel


def nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood in float32; logits (B, T, V) of any type, targets (B, T), -100 ignored."""
    return cross_entropy(logits.float().flatten(0, 1), targets.flatten())


@torch.inference_mode()
def windowed_loss(model: LanguageModel, ids: np.ndarray, context: int) -> float:
    """Non-overlapping windows, each read from the initial state."""
    return _mean(model, windows(ids, context), carry=False)


@torch.inference_mode()
def streaming_loss(model: LanguageModel, ids: np.ndarray) -> float:
    """One pass with the state carried from the first character to the last."""
    return _mean(model, stream(ids), carry=True)


def _mean(model: LanguageModel, pieces: Iterable[Piece], carry: bool) -> float:
    total, count, state = 0.0, 0, None
    device = model.head.weight.device
    for piece in pieces:
        x, y = (torch.from_numpy(part).to(device) for part in piece)
        logits, new = model(x, state)
        state = new if carry else None
        total += nll(logits, y).item() * y.numel()
        count += y.numel()
    return total / count


@torch.inference_mode()
def copying_accuracy(model: LanguageModel, problems: Copying) -> tuple[float, float]:
    """Mean loss and share of right answers over the held-out problems."""
    totals = torch.zeros(3)
    for piece in problems.validation():
        x, y = (torch.from_numpy(part).to(model.head.weight.device) for part in piece)
        logits, _ = model(x)
        count = (y != IGNORED).sum().item()
        right = (logits.argmax(-1) == y).sum().item()
        totals += torch.tensor([nll(logits, y).item() * count, right, count])
    loss, right, count = totals.tolist()
    return loss / count, right / count
