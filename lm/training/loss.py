"""Losses in nats per character."""

import copy
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from lm.corpora.batches import Piece, Windows, stream
from lm.corpora.copying import IGNORED, Copying
from lm.model import Ensemble, LanguageModel
from lm.ops import cross_entropy

CHUNK = 2**16
"""Characters of a sequence that are scored at a time, its state carried on: memory stays bounded."""


def nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood in float32; logits (B, T, V) of any type, targets (B, T), IGNORED ones left out."""
    return cross_entropy(logits, targets, IGNORED)


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of the predictions, from logits (B, T, V), from probabilities (B, T, V)."""
    return kl_div(logits.float().log_softmax(-1), teacher.float(), reduction="none").sum(-1).mean()


def windowed_loss(model: LanguageModel | Ensemble, ids: np.ndarray, context: int) -> float:
    """Mean loss of a text (n,) in non-overlapping windows, each read from the initial state."""
    return score(model, Windows(ids, context))[0]


def streaming_loss(model: LanguageModel | Ensemble, ids: np.ndarray) -> float:
    """Mean loss of a text (n,) as one sequence: the state is carried from the first character to the last."""
    return score(model, stream(ids), carry=True)[0]


def dynamic_loss(model: LanguageModel | Ensemble, ids: np.ndarray, lr: float, characters: int = 64) -> float:
    """As `streaming_loss`, with weights that learn from the text (dynamic evaluation, arXiv 1709.07432).

    Each piece is scored first; then the weights of a copy of the model take a step of gradient descent on its loss.
    """
    model = copy.deepcopy(model).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr)
    total, state = 0.0, None
    for piece in stream(ids, characters):
        x, y = (torch.from_numpy(part) for part in piece)
        logits, state = model(x, state)
        state = tuple(tuple(tensor.detach() for tensor in layer) for layer in state)
        loss = nll(logits, y)
        total += loss.item() * y.numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return total / (len(ids) - 1)


def copying_answers(model: LanguageModel | Ensemble, problems: Copying) -> tuple[float, Tensor]:
    """Mean loss over the held-out problems, and which answers are right (problems, tokens)."""
    loss, right = score(model, problems.validation_pieces()[0])
    return loss, right.unflatten(0, (-1, problems.tokens))


@torch.inference_mode()
def score(model: LanguageModel | Ensemble, pieces: Iterable[Piece], carry: bool = False) -> tuple[float, Tensor]:
    """Mean loss over all pieces, and which targets are the most likely id (targets,).

    Args:
        carry: read each piece from the state after the one before, instead of the initial state.
    """
    total, right, state = 0.0, list[Tensor](), None
    device = next(model.parameters()).device
    for piece in pieces:
        state = state if carry else None
        x, y = (torch.from_numpy(part).to(device) for part in piece)
        found = []
        for part, targets in zip(x.split(CHUNK, dim=1), y.split(CHUNK, dim=1), strict=True):
            logits, state = model(part, state)
            if scored := int((targets != IGNORED).sum()):
                total += nll(logits, targets).item() * scored
            found.append(logits.argmax(-1) == targets)
        right.append(torch.cat(found, dim=1)[y != IGNORED])
    answers = torch.cat(right)
    return total / len(answers), answers
