"""Mamba's selective scan on a CPU: the kernels of selective.c, with the interface of `lm.recurrence.portable`."""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_int, c_int32, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from lm.native.build import Library
from lm.native.choice import TYPES, thread_count
from lm.recurrence import portable
from lm.recurrence.cpu import View, empty, view


class Call(ctypes.Structure):
    """`call` of selective.c."""

    _fields_ = [
        *((name, c_int32) for name in ("type", "backward", "threads")),
        *((name, c_int64) for name in "BTDN"),
        *((name, View) for name in ("u", "delta", "b", "c", "y", "grad_u", "grad_delta", "grad_b", "grad_c")),
        *((name, c_void_p) for name in ("A", "skip", "grad_A", "grad_skip", "starts", "first", "last", "memory")),
    ]


library = Library(
    Path(__file__).with_name("selective.c"),
    selective_scan=(c_int, POINTER(Call)),
    selective_memory=(c_int64, POINTER(Call)),
)


def selective_forward(inputs: Sequence[Tensor], h0: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(y, h_last, starts) of the selective scan; see `lm.recurrence.portable.selective_forward`."""
    u, delta, A, B, C, skip = inputs
    if not u.numel():
        return portable.selective_forward(inputs, h0)
    y = empty(u)
    starts = empty(A, portable.starts_shape(u, A))
    last = A.new_empty((u.shape[0], *A.shape))
    _scan((u, delta, B, C, y), {}, {"A": A, "skip": skip, "starts": starts, "first": h0, "last": last})
    return y, last, starts


def selective_backward(
    inputs: Sequence[Tensor], starts: Tensor, grad_y: Tensor, grad_last: Tensor | None
) -> list[Tensor]:
    """Gradients of u, delta, A, B, C, skip and h0, each in its tensor's type and shape."""
    u, delta, A, B, C, skip = inputs
    if not u.numel():
        return portable.selective_backward(inputs, starts, grad_y, grad_last)
    grads = {f"grad_{name}": empty(x) for name, x in (("u", u), ("delta", delta), ("b", B), ("c", C))}
    grad_A, grad_skip, grad_h0 = A.new_empty(A.shape), skip.new_empty(skip.shape), A.new_empty(starts[:, 0].shape)
    states = {"A": A, "skip": skip, "grad_A": grad_A, "grad_skip": grad_skip, "starts": starts}
    _scan((u, delta, B, C, grad_y), grads, {**states, "first": grad_last, "last": grad_h0})
    grad_u, grad_delta, grad_B, grad_C = grads.values()
    return [grad_u, grad_delta, grad_A, grad_B, grad_C, grad_skip, grad_h0]


def _scan(sequences: tuple[Tensor, ...], grads: dict[str, Tensor], states: dict[str, Tensor | None]) -> None:
    """Call the kernel: `sequences` are u, delta, B, C and y, or its gradient; with `grads` it goes backward."""
    sequences = tuple(portable.rows(x) for x in sequences)
    u, N = sequences[0], sequences[2].shape[-1]
    threads = thread_count(u.numel() * N)
    call = Call(TYPES[u.dtype], bool(grads), threads, *u.shape, N, *map(view, sequences))
    for name, x in grads.items():
        setattr(call, name, view(x))
    kept = {name: x.contiguous() for name, x in states.items() if x is not None}  # outputs are contiguous already
    for name, x in kept.items():
        setattr(call, name, x.data_ptr())
    if grads:
        memory = empty(kept["A"], torch.Size([library().selective_memory(call)]))
        call.memory = memory.data_ptr()
    if library().selective_scan(call):
        raise MemoryError("no memory for the states of the selective scan")
