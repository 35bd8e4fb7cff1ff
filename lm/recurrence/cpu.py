"""The recurrence on a CPU: native kernels (scan.c) with the interface of `lm.recurrence.portable`.

Where they cannot be built, `library` says so and `portable` serves instead.
"""

import ctypes
import functools
import weakref
from collections.abc import Sequence
from ctypes import POINTER, c_int32, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from lm.native.build import BuildError, build

SOURCE = Path(__file__).with_name("scan.c")
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
LINEAR, MINGRU, MINLSTM = range(3)
LARGE = 4 << 20  # bytes from which it matters where the memory comes from
SMALL = 1 << 17  # elements that keep one thread busy for longer than it takes to wake it


# ---------------------------------------------------------------- kernels


class View(ctypes.Structure):
    """`view` of scan.c."""

    _fields_ = [("data", c_void_p), ("batch", c_int64), ("time", c_int64)]


class Call(ctypes.Structure):
    """`call` of scan.c."""

    _fields_ = [
        *((name, c_int32) for name in ("kind", "type", "backward", "threads")),
        *((name, c_int64) for name in "BTD"),
        ("input", View * 3),
        ("h", View),
        ("grad_h", View),
        ("grad", View * 3),
        *((name, c_void_p) for name in ("h0", "first", "last")),
    ]


def linear_forward(a: Tensor, b: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor]:
    """(h, h_last) of the linear scan; a, b (B, T, D), h0 (B, D)."""
    return _forward(LINEAR, (a, b), h0)


def linear_backward(
    a: Tensor, h: Tensor, h0: Tensor | None, grad_h: Tensor, grad_last: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b (in their type) and h0."""
    grads = _empty(a, a.shape), _empty(a, a.shape)
    return *grads, _backward(LINEAR, (a, a), grads, h, h0, grad_h, grad_last)


def cell_forward(projection: Tensor, h0: Tensor | None, parts: int) -> tuple[Tensor, Tensor]:
    """(h, h_last) of minGRU (2 parts) or minLSTM (3 parts); projection (B, T, parts * D), h0 (B, D)."""
    return _forward(_kind(parts), _rows(projection).chunk(parts, dim=-1), h0)


def cell_backward(
    projection: Tensor, h: Tensor, h0: Tensor | None, grad_h: Tensor, grad_last: Tensor, parts: int
) -> tuple[Tensor, Tensor]:
    """Gradients of the projection (one tensor, its shape and type) and of h0. Recomputes the gates."""
    grad = _empty(projection, projection.shape)
    inputs, grads = _rows(projection).chunk(parts, dim=-1), grad.chunk(parts, dim=-1)
    return grad, _backward(_kind(parts), inputs, grads, h, h0, grad_h, grad_last)


def _kind(parts: int) -> int:
    return {2: MINGRU, 3: MINLSTM}[parts]


def _forward(kind: int, inputs: Sequence[Tensor], h0: Tensor | None) -> tuple[Tensor, Tensor]:
    inputs = [_rows(x) for x in inputs]
    h0 = _state(h0)
    h = _empty(inputs[0], inputs[0].shape)
    call, last = _call(kind, inputs, h, h0)
    call.first = call.h0
    _scan(call)
    return h, last


def _backward(
    kind: int,
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor],
    h: Tensor,
    h0: Tensor | None,
    grad_h: Tensor,
    grad_last: Tensor,
) -> Tensor:
    inputs = [_rows(x) for x in inputs]
    h, grad_h, h0, grad_last = _rows(h), _rows(grad_h), _state(h0), grad_last.contiguous()
    call, grad_h0 = _call(kind, inputs, h, h0)
    call.backward = 1
    call.first = grad_last.data_ptr()
    call.grad_h = _view(grad_h)
    call.grad = _views(grads)
    _scan(call)
    return grad_h0


def _call(kind: int, inputs: Sequence[Tensor], h: Tensor, h0: Tensor | None) -> tuple[Call, Tensor]:
    """What forward and backward have in common, and the state (B, D) that will leave the scan."""
    B, T, D = h.shape
    last = h.new_empty((B, D), dtype=torch.float32)
    threads = min(torch.get_num_threads(), 1 + h.numel() // SMALL)
    call = Call(kind, TYPES[h.dtype], 0, threads, B, T, D, _views(inputs), _view(h))
    call.h0 = None if h0 is None else h0.data_ptr()
    call.last = last.data_ptr()
    return call, last


def _scan(call: Call) -> None:
    if call.B and call.D and library().scan(call):
        raise MemoryError("no memory for the state of the recurrence")


def _view(x: Tensor) -> View:
    return View(x.data_ptr(), x.stride(0), x.stride(1))


def _views(tensors: Sequence[Tensor]) -> ctypes.Array[View]:
    return (View * 3)(*map(_view, tensors))


def _state(h0: Tensor | None) -> Tensor | None:
    return None if h0 is None else h0.contiguous()


def _rows(x: Tensor) -> Tensor:
    """x with its channels side by side. Of an expanded tensor, such as sum's gradient, one row is copied, not all."""
    if x.stride(-1) == 1 or x.shape[-1] == 1:
        return x
    once = [slice(1) if stride == 0 else slice(None) for stride in x.stride()[:2]]
    return x[tuple(once)].contiguous().expand(x.shape)


# ---------------------------------------------------------------- memory


class Pool:
    """Memory of tensors that are gone, for the next of their size.

    The system's allocator gives large blocks back when they are freed, and the next step pays for mapping, faulting in
    and clearing them anew: more than the recurrence itself. What lies idle is at most `limit` bytes, latest used.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.idle: list[Tensor] = []

    def empty(self, like: Tensor, shape: torch.Size) -> Tensor:
        """As `like.new_empty(shape)`; its memory comes back here when nothing refers to it any more."""
        size = shape.numel() * like.itemsize
        block = self._take(size)
        buffer = (ctypes.c_char * size).from_address(block.data_ptr())
        weakref.finalize(buffer, self._give, block).atexit = False
        return torch.frombuffer(buffer, dtype=like.dtype).view(shape)

    def _take(self, size: int) -> Tensor:
        for i in reversed(range(len(self.idle))):
            if self.idle[i].nbytes == size:
                return self.idle.pop(i)
        block = torch.empty(size, dtype=torch.uint8)
        library().expect(block.data_ptr(), size)
        return block

    def _give(self, block: Tensor) -> None:
        self.idle.append(block)
        while sum(idle.nbytes for idle in self.idle) > self.limit:
            del self.idle[0]


_pool = Pool(limit=1 << 30)


def _empty(like: Tensor, shape: torch.Size) -> Tensor:
    """Uninitialised, of the type of `like`; large ones from memory that was used before."""
    small = shape.numel() * like.itemsize < LARGE
    return like.new_empty(shape) if small else _pool.empty(like, shape)


# ---------------------------------------------------------------- build


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The compiled kernels, or why there are none: tried once."""
    try:
        loaded = build(SOURCE)
    except BuildError as error:
        return f"the native kernels of the recurrence are not to be had: {error}"
    loaded.scan.argtypes, loaded.scan.restype = [POINTER(Call)], ctypes.c_int
    loaded.expect.argtypes, loaded.expect.restype = [c_void_p, c_int64], None
    return loaded


def library() -> ctypes.CDLL:
    """The compiled kernels, built if need be (about a second). Raises BuildError, each time, if that failed."""
    loaded = _load()
    if isinstance(loaded, str):
        raise BuildError(loaded)
    return loaded
