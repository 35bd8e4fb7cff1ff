"""Sequences that are cut over processes: each has a stretch of every sequence, and starts from the state before it.

A linear recurrence maps the state before a stretch to the one after it by h -> product * h + last, where `last` is the
state that the stretch reaches from zero. All processes exchange these two, in one all-gather forward and one sum
backward, and each computes the state at its start (LASP-2, arXiv 2502.07563).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

NOTHING = 0.0
"""What the first process takes of others: it must take part in the exchange of gradients all the same."""
PIECE = 4096
"""Steps whose product and last state are computed at a time."""
Stretch = Callable[..., tuple[Tensor, Tensor]]
_active = False


@contextmanager
def time_split(active: bool = True) -> Iterator[None]:
    """Within, mixers that get no state take their sequences for the stretch of this process's rank."""
    global _active
    before, _active = _active, active and dist.is_available() and dist.is_initialized()
    try:
        yield
    finally:
        _active = before


def is_split() -> bool:
    """Whether sequences are cut over processes."""
    return _active


def last_inputs(x: Tensor, count: int) -> Tensor:
    """The last inputs of the stretch before x (B, T, D), T >= count: (B, count, D); zeros before the first stretch."""
    gathered, rank = gather(x[:, x.shape[1] - count :]), dist.get_rank()
    return gathered[rank - 1] if rank else NOTHING * gathered[0]


def first_state(stretch: Stretch, inputs: Sequence[Tensor], *constants: Tensor) -> Tensor:
    """The state before this stretch.

    Args:
        stretch: from inputs and constants, the product of the factors of a channel over the inputs' steps, and the
            state that they reach from zero, of the same shape.
        inputs: a value for each step, (B, T, ...).
        constants: what else the stretch depends on, such as weights.
    """
    gathered = gather(torch.stack(_Summary.apply(stretch, len(inputs), *inputs, *constants)))  # type: ignore[no-untyped-call]
    state = NOTHING * gathered[0, 1]
    for product, last in gathered[: dist.get_rank()]:
        state = product * state + last
    return state


class _Summary(torch.autograd.Function):
    """Product and last state of a stretch, piece by piece; backward computes each piece again, so that nothing of it is
    kept but these two."""

    @staticmethod
    def forward(ctx: Any, stretch: Stretch, count: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        inputs, constants = tensors[:count], tensors[count:]
        ctx.stretch, ctx.count = stretch, count
        ctx.save_for_backward(*tensors)
        ctx.pieces = [stretch(*part, *constants) for part in _parts(inputs)]
        return _composed(ctx.pieces)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inputs, constants = ctx.saved_tensors[: ctx.count], [_leaf(x) for x in ctx.saved_tensors[ctx.count :]]
        found, sums = [torch.empty_like(x) for x in inputs], [torch.zeros_like(x) for x in constants]
        pieces = [_leaf(x) for piece in ctx.pieces for x in piece]
        with torch.enable_grad():
            whole = _composed(list(zip(pieces[::2], pieces[1::2], strict=True)))
        outer = iter(torch.autograd.grad(whole, pieces, grads))
        for part, into in zip(_parts(inputs), _parts(found), strict=True):
            leaves = [_leaf(x) for x in part]
            with torch.enable_grad():
                summary = ctx.stretch(*leaves, *constants)
            inner = torch.autograd.grad(summary, [*leaves, *constants], [next(outer), next(outer)])
            for target, grad in zip(into, inner, strict=False):
                target.copy_(grad)
            for total, grad in zip(sums, inner[ctx.count :], strict=True):
                total += grad
        return None, None, *found, *sums


def _parts(inputs: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    return list(zip(*(x.split(PIECE, dim=1) for x in inputs), strict=True))


def _composed(pieces: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
    """Product and last state of pieces that follow each other."""
    product, last = pieces[0]
    for factor, end in pieces[1:]:
        product, last = factor * product, factor * last + end
    return product, last


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def gather(x: Tensor) -> Tensor:
    """The tensors of all processes (N, ...), of one shape; the gradient of each goes to the process that it is from."""
    wide = x if x.dtype == torch.float64 else x.float()  # not every backend knows 16 bits
    return _Gather.apply(wide).to(x.dtype)  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[dist.get_rank()]
