"""The exact gradient of a long context in the memory of a short one.

Forward goes through the context in chunks and keeps the model's state at each border, nothing else. Backward starts at
the last chunk: it computes each chunk again, from the state at its start and with the same dropout, and passes the
gradient of that state on to the chunk before. A step costs one forward pass more than without chunks.
"""

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

from lm.corpora.copying import IGNORED
from lm.model import LanguageModel, ModelState


def chunked_loss(
    model: LanguageModel, x: Tensor, y: Tensor, state: ModelState | None, chunk: int
) -> tuple[Tensor, ModelState]:
    """Mean loss of targets y (B, T) given x (B, T), and the state after the last.

    Args:
        state: before the first character; no gradient goes to it.
        chunk: characters of each sequence that are computed at a time.
    """
    ends: list[ModelState] = []
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss: Tensor = _Chunked.apply(model, x, y, state, chunk, ends, *parameters)  # type: ignore[no-untyped-call]
    return loss, ends[0]


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, model: Any, x: Any, y: Any, state: Any, chunk: int, ends: Any, *parameters: Tensor) -> Tensor:
        ctx.model, ctx.parameters = model, parameters
        ctx.autocast = torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)
        ctx.pieces = list(zip(x.split(chunk, dim=1), y.split(chunk, dim=1), strict=True))
        ctx.borders, stacks = [(state, _random_state(x.device))], None
        ctx.scored = (y != IGNORED).sum()
        total = x.new_zeros((), dtype=torch.float32)
        for i, (piece_x, piece_y) in enumerate(ctx.pieces):
            logits, state = model(piece_x, state)
            total += _sum(logits, piece_y)
            border = (*state, (_random_state(x.device),))
            stacks = stacks or tuple(tuple(t.new_empty(len(ctx.pieces), *t.shape) for t in layer) for layer in border)
            *layers, (random,) = _store(border, stacks, i)
            state = tuple(layers)
            ctx.borders.append((state, random))
        ctx.borders.pop()
        ends.append(tuple(tuple(t.clone() for t in layer) for layer in state))
        return total / ctx.scored

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        device = grad.device
        sums: list[Tensor | None] = [None] * len(ctx.parameters)
        passed: list[Tensor] = []  # gradients of the state at the end of the chunk
        after = _random_state(device)
        for (x, y), (state, random) in zip(reversed(ctx.pieces), reversed(ctx.borders), strict=True):
            _set_random_state(device, random.clone())  # torch 2.13 crashes when it is given a row of a tensor
            starts = None if state is None else tuple(tuple(_leaf(t) for t in layer) for layer in state)
            leaves = [] if starts is None else _differentiable(starts)
            with torch.enable_grad(), torch.autocast(device.type, ctx.autocast[1], enabled=ctx.autocast[0]):
                logits, end = ctx.model(x, starts)
                loss = _sum(logits, y) / ctx.scored
            outputs, weights = [loss], [grad]
            if passed:
                pairs = [(t, g) for t, g in zip(_differentiable(end), passed, strict=True) if t.requires_grad]
                outputs, weights = [loss, *(t for t, _ in pairs)], [grad, *(g for _, g in pairs)]
            found = torch.autograd.grad(outputs, [*leaves, *ctx.parameters], weights, allow_unused=True)
            passed = [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=False)]
            for i, g in enumerate(found[len(leaves) :]):
                before = sums[i]
                sums[i] = g if before is None else before if g is None else before.add_(g)
        _set_random_state(device, after)
        return None, None, None, None, None, None, *sums


def _store(border: ModelState, stacks: ModelState, i: int) -> ModelState:
    """Copy each tensor to row i of its stack; returns the rows.

    Small blocks, allocated between the large ones of each chunk, would keep the allocator from using those again.
    """
    rows = tuple(tuple(stack[i] for stack in layer) for layer in stacks)
    for row, tensor in zip(itertools.chain(*rows), itertools.chain(*border), strict=True):
        row.copy_(tensor)
    return rows


def _sum(logits: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(logits.float().flatten(0, 1), y.flatten(), reduction="sum")


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point())


def _differentiable(state: ModelState) -> list[Tensor]:
    return [tensor for layer in state for tensor in layer if tensor.is_floating_point()]


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
