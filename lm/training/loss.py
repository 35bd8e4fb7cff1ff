"""Losses in nats per character."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lm.corpora.batches import Piece, Windows, stream
from lm.corpora.copying import IGNORED, Copying
from lm.model import LanguageModel


def nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood in float32; logits (B, T, V) of any type, targets (B, T), IGNORED ones left out."""
    return cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def windowed_loss(model: LanguageModel, ids: np.ndarray, context: int) -> float:
    """Mean loss of a text (n,) in non-overlapping windows, each read from the initial state."""
    return score(model, Windows(ids, context))[0]


def streaming_loss(model: LanguageModel, ids: np.ndarray) -> float:
    """Mean loss of a text (n,) as one sequence: the state is carried from the first character to the last."""
    return score(model, stream(ids), carry=True)[0]


def copying_accuracy(model: LanguageModel, problems: Copying) -> tuple[float, float]:
    """Mean loss, and share of right answers, over the held-out problems."""
    return score(model, problems.validation_pieces(problems.context)[0])


@torch.inference_mode()
def score(model: LanguageModel, pieces: Iterable[Piece], carry: bool = False) -> tuple[float, float]:
    """Mean loss, and share of targets that are the most likely id, over all pieces.

    Args:
        carry: read each piece from the state after the one before, instead of the initial state.
    """
    total, right, count, state = 0.0, 0, 0, None
    for piece in pieces:
        x, y = (torch.from_numpy(part).to(model.head.weight.device) for part in piece)
        logits, new = model(x, state)
        state = new if carry else None
        scored = int((y != IGNORED).sum())
        total += nll(logits, y).item() * scored
        right += int((logits.argmax(-1) == y).sum())
        count += scored
    return total / count, right / count
