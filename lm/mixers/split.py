"""Sequences that are cut over processes: each has a stretch of every sequence, and starts from the state before it.

A linear recurrence maps the state before a stretch to the one after it by h -> product * h + last, where `last` is the
state that the stretch reaches from zero. All processes exchange these two, in one all-gather forward and one sum
backward, and each computes the state at its start (LASP-2, arXiv 2502.07563).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

NOTHING = 0.0
"""What the first process takes of others: it must take part in the exchange of gradients all the same."""
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


def first_state(stretch: Callable[..., tuple[Tensor, Tensor]], *inputs: Tensor) -> Tensor:
    """The state before this stretch.

    Args:
        stretch: from the inputs, the product of the factors of a channel over this stretch, and the state that it
            reaches from zero, of the same shape. Backward computes it again, as it would keep much for these two.
    """
    product, last = checkpoint(stretch, *inputs, use_reentrant=False, preserve_rng_state=False)
    gathered = gather(torch.stack([product, last]))
    state = NOTHING * gathered[0, 1]
    for product_before, last_before in gathered[: dist.get_rank()]:
        state = product_before * state + last_before
    return state


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
