"""What a model predicts while it reads and, of a minGRU or minLSTM, the gates z and the states h of its cells.

h_t = (1 - z_t) h_{t-1} + z_t g(c_t),    so that position s has the share z_s g(c_s) prod_{s < r <= t} (1 - z_r) in h_t
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from lm.mixers.mingru import MinGRU
from lm.model import LanguageModel, ModelState
from lm.recurrence.portable import gate_logits, widen

CHUNK, FLOATS = 2048, 2**22
"""Characters that are read at a time, and gates that are in memory, at most."""
LIKELIEST = 10
"""Ids that are kept of each prediction."""


@dataclass(frozen=True)
class Predictions:
    """What a model of V ids predicts after each of n characters; K = LIKELIEST, or V if that is less."""

    ids: np.ndarray
    """the likeliest next ids, the likeliest first (n, K), int32"""
    probabilities: np.ndarray
    """of these, float32 (n, K)"""
    bits: np.ndarray
    """surprise of each character, -log2 of its probability: float32 (n,); 0 for the first, which nothing predicts"""


@dataclass(frozen=True)
class Trace:
    """A stretch of a text as a model of L layers with H_1, H_2, ... channels reads it."""

    logits: np.ndarray
    """of the next id after each (n, V)"""
    z: np.ndarray
    """gates of all layers side by side (n, H_1 + H_2 + ...)"""
    h: np.ndarray
    """states, likewise"""


def cells(model: LanguageModel) -> list[MinGRU]:
    """The mixers of a model whose layers are all minGRU or minLSTM."""
    return [cast(MinGRU, block.mixer) for block in model.blocks]


@torch.inference_mode()
def predict(model: nn.Module, ids: np.ndarray) -> Predictions:
    """Read a text (n,) from the initial state as one sequence; for any mixer."""
    if not len(ids):
        return Predictions(np.empty((0, 0), np.int32), *(np.empty(0, np.float32) for _ in range(2)))
    ids, read, state, parts = ids.astype(np.int64), 0, None, []
    for piece in torch.from_numpy(ids).split(CHUNK):
        logits, state = model(piece[None], state)
        scores = logits[0].float().log_softmax(-1)
        following = torch.from_numpy(ids[read + 1 : read + 1 + len(piece)])
        best = scores.topk(min(LIKELIEST, scores.shape[1]))
        told = scores[: len(following)].gather(1, following[:, None])[:, 0]
        read += len(piece)
        parts.append((best.indices.int().numpy(), best.values.exp().numpy(), told.numpy() / -math.log(2)))
    top, probabilities, bits = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Predictions(top, probabilities, np.append(np.float32(0), bits))


@torch.inference_mode()
def traces(model: LanguageModel, ids: np.ndarray) -> Iterator[Trace]:
    """Read a text (n,) from the initial state as one sequence; yields it in pieces of at most CHUNK characters.

    Gates and states are computed again from what each layer's projection returns, as `MinGRU.forward` keeps neither.
    """
    state: ModelState = model.init_state(1)
    mixers = cells(model)
    for piece in torch.from_numpy(ids.astype(np.int64)).split(piece_size(mixers)):
        with _outputs([mixer.projection for mixer in mixers]) as projections:
            logits, after = model(piece[None], state)
        layers = zip(mixers, projections, state, strict=True)
        z, h = zip(*(gates_and_states(mixer, projection, h0) for mixer, projection, (h0, *_) in layers), strict=True)
        yield Trace(logits[0].float().numpy(), torch.cat(z, 1).numpy(), torch.cat(h, 1).numpy())
        state = after


def piece_size(mixers: Sequence[MinGRU]) -> int:
    """Characters that are traced at a time: at most CHUNK, and FLOATS gates."""
    return max(1, min(CHUNK, FLOATS // sum(mixer.hidden for mixer in mixers)))


def gates_and_states(mixer: MinGRU, projection: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    """z and h (n, H) of a layer from its projection (1, n, (gates + 1) H) and the state h0 (1, H) before it."""
    *logits, _ = widen(projection).chunk(mixer.gates + 1, dim=-1)
    return torch.sigmoid(gate_logits(logits))[0], mixer.scan(projection, h0)[0][0]


@contextmanager
def _outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What modules return within the `with` block, in the order of their calls."""
    kept: list[Tensor] = []
    handles = [module.register_forward_hook(lambda _module, _inputs, output: kept.append(output)) for module in modules]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
