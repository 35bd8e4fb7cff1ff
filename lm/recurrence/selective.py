"""Mamba's selective scan on a CPU: native kernels (selective.c) with the interface of `lm.recurrence.portable`."""

import ctypes
import functools
from ctypes import POINTER, c_int32, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from lm.native.build import BuildError, build
from lm.recurrence import cpu, portable
from lm.recurrence.cpu import SMALL, TYPES, View, _empty, _rows, _view

SOURCE = Path(__file__).with_name("selective.c")


class Call(ctypes.Structure):
    """`call` of selective.c."""

    _fields_ = [
        *((name, c_int32) for name in ("type", "backward", "threads")),
        *((name, c_int64) for name in "BTDN"),
        *((name, View) for name in ("u", "delta", "b", "c", "y", "grad_u", "grad_delta", "grad_b", "grad_c")),
        *((name, c_void_p) for name in ("A", "skip", "grad_A", "grad_skip", "starts", "first", "last", "memory")),
    ]


def selective_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor, h0: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, h_last, starts) of the selective scan; starts are the states that backward begins with again."""
    if not u.numel():
        return portable.selective_forward(u, delta, A, B, C, skip, h0)
    y = _empty(u, u.shape)
    starts = _empty(A, portable.starts_shape(u, A))
    last = A.new_empty((u.shape[0], *A.shape))
    _scan((u, delta, B, C, y), {}, {"A": A, "skip": skip, "starts": starts, "first": h0, "last": last})
    return y, last, starts


def selective_backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor,
    starts: Tensor,
    grad_y: Tensor,
    grad_last: Tensor | None,
) -> tuple[Tensor, ...]:
    """Gradients of u, delta, A, B, C, skip and h0, each in its tensor's type and shape."""
    if not u.numel():
        return portable.selective_backward(u, delta, A, B, C, skip, starts, grad_y, grad_last)
    grads = {f"grad_{name}": _empty(x, x.shape) for name, x in (("u", u), ("delta", delta), ("b", B), ("c", C))}
    grad_A, grad_skip, grad_h0 = A.new_empty(A.shape), skip.new_empty(skip.shape), A.new_empty(starts[:, 0].shape)
    states = {"A": A, "skip": skip, "grad_A": grad_A, "grad_skip": grad_skip, "starts": starts}
    _scan((u, delta, B, C, grad_y), grads, {**states, "first": grad_last, "last": grad_h0})
    grad_u, grad_delta, grad_B, grad_C = grads.values()
    return grad_u, grad_delta, grad_A, grad_B, grad_C, grad_skip, grad_h0


def _scan(sequences: tuple[Tensor, ...], grads: dict[str, Tensor], states: dict[str, Tensor | None]) -> None:
    """Calls the kernel: `sequences` are u, delta, B, C and y or its gradient; with `grads` it goes backward."""
    rows = [_rows(x) for x in sequences]
    u, N = rows[0], rows[2].shape[-1]
    threads = min(torch.get_num_threads(), 1 + u.numel() * N // SMALL)
    call = Call(TYPES[u.dtype], bool(grads), threads, *u.shape, N, *map(_view, rows))
    for name, x in grads.items():
        setattr(call, name, _view(x))
    kept = {name: x.contiguous() for name, x in states.items() if x is not None}  # inputs; outputs are so already
    for name, x in kept.items():
        setattr(call, name, x.data_ptr())
    if grads:
        memory = _empty(kept["A"], torch.Size([library().selective_memory(call)]))
        call.memory = memory.data_ptr()
    if library().selective_scan(call):
        raise MemoryError("no memory for the states of the selective scan")


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The compiled kernels, or why there are none: tried once."""
    try:
        cpu.library()  # where these fail the others do too
        loaded = build(SOURCE)
    except BuildError as error:
        return str(error)
    for name, result in (("selective_scan", ctypes.c_int), ("selective_memory", c_int64)):
        function = getattr(loaded, name)
        function.argtypes, function.restype = [POINTER(Call)], result
    return loaded


def library() -> ctypes.CDLL:
    """The compiled kernels, built if need be (about a second). Raises BuildError, each time, if that failed."""
    loaded = _load()
    if isinstance(loaded, str):
        raise BuildError(loaded)
    return loaded
