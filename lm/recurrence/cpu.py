"""The recurrence on a CPU: the compiled kernels of scan.c, with the interface of `lm.recurrence.portable`."""

import ctypes
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from ctypes import POINTER, Array, c_int, c_int32, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from lm.native.build import Library
from lm.native.choice import TYPES, prepared, thread_count
from lm.recurrence.portable import Kind, rows

LARGE = 4 << 20  # bytes from which memory is taken from the pool


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


library = Library(Path(__file__).with_name("scan.c"), scan=(c_int, POINTER(Call)), expect=(None, c_void_p, c_int64))


def scan_forward(kind: Kind, x: Sequence[Tensor], h0: Tensor | None) -> tuple[Tensor, Tensor]:
    """(h, h_last) of a scan; see `lm.recurrence.portable.scan_forward`."""
    h0 = None if h0 is None else h0.contiguous()
    inputs = [rows(part) for part in x]
    B, T, D = x[0].shape
    h = empty(x[0], torch.Size((B, T, D if kind == Kind.LINEAR else D // (kind + 1))))
    call, last = _call(kind, inputs, h, h0)
    call.first = call.h0
    _scan(call)
    return h, last


def scan_backward(
    kind: Kind,
    x: Tensor,
    grads: Sequence[Tensor],
    h: Tensor,
    h0: Tensor | None,
    grad_h: Tensor,
    grad_last: Tensor | None,
) -> Tensor:
    """The gradient of h0, and those of the inputs into `grads`; see `lm.recurrence.portable.scan_backward`."""
    h0 = None if h0 is None else h0.contiguous()
    inputs = [rows(x)] * (2 if kind == Kind.LINEAR else 1)  # of the linear scan, the kernel reads two and uses a alone
    h, grad_h = rows(h), rows(grad_h)
    grad_last = None if grad_last is None else grad_last.contiguous()
    call, grad_h0 = _call(kind, inputs, h, h0, backward=True)
    call.first = None if grad_last is None else grad_last.data_ptr()
    call.grad_h = view(grad_h)
    call.grad = _views(kind, grads)
    _scan(call)
    return grad_h0


def _call(kind: Kind, x: Sequence[Tensor], h: Tensor, h0: Tensor | None, backward: bool = False) -> tuple[Call, Tensor]:
    """The arguments that forward and backward share, and the state (B, D) that will leave the scan."""
    last = h.new_empty((h.shape[0], h.shape[2]), dtype=torch.float32)
    call = _prepared_call(kind, h.shape, h.dtype, thread_count(h.numel()), backward)
    call.input, call.h, call.last = _views(kind, x), view(h), last.data_ptr()
    call.h0 = None if h0 is None else h0.data_ptr()
    return call, last


@prepared
def _prepared_call(kind: Kind, shape: torch.Size, dtype: torch.dtype, threads: int, backward: bool) -> Call:
    return Call(kind, TYPES[dtype], backward, threads, *shape)


def _views(kind: Kind, x: Sequence[Tensor]) -> Array[View]:
    """The inputs of a scan, or their gradients; those of a cell are side by side in one tensor: `Kind.split`."""
    if kind == Kind.LINEAR:
        return (View * 3)(*map(view, x))
    (packed,) = x
    batch, time, _ = packed.stride()
    first, size = packed.data_ptr(), packed.shape[2] // (kind + 1) * packed.element_size()
    return (View * 3)(*(View(first + i * size, batch, time) for i in range(kind + 1)))


def _scan(call: Call) -> None:
    if call.B and call.D and library().scan(call):
        raise MemoryError("no memory for the state of the recurrence")


def view(x: Tensor) -> View:
    """A tensor (B, T, D) as the kernels take it."""
    return View(x.data_ptr(), x.stride(0), x.stride(1))


class Pool:
    """Memory of large tensors, used again for tensors of the same size once nothing refers to it.

    The system's allocator returns large blocks when they are freed, and the next step would pay for mapping, faulting
    in and clearing new ones: more than the recurrence itself. At most `limit` bytes lie idle, those used last.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.idle: list[Tensor] = []
        self._returned: deque[Tensor] = deque()
        self._lock = threading.Lock()  # of `idle`

    def empty(self, dtype: torch.dtype, shape: torch.Size) -> Tensor:
        """As `torch.empty`; the memory returns to the pool when nothing refers to it any more."""
        size = shape.numel() * dtype.itemsize
        block = self._take(size)
        buffer = (ctypes.c_char * size).from_address(block.data_ptr())
        weakref.finalize(buffer, self._give, block).atexit = False
        return torch.frombuffer(buffer, dtype=dtype).view(shape)

    def _take(self, size: int) -> Tensor:
        with self._lock:
            self._collect()
            for i in reversed(range(len(self.idle))):
                if self.idle[i].nbytes == size:
                    return self.idle.pop(i)
        block = torch.empty(size, dtype=torch.uint8, device="cpu")
        library().expect(block.data_ptr(), size)
        return block

    def _give(self, block: Tensor) -> None:
        """Called by finalisers, which run at any moment: within `_take`, the block is left for the next call."""
        self._returned.append(block)
        if self._lock.acquire(blocking=False):
            self._collect()
            self._lock.release()

    def _collect(self) -> None:
        while self._returned:
            self.idle.append(self._returned.popleft())
        while sum(block.nbytes for block in self.idle) > self.limit:
            del self.idle[0]


_pool = Pool(limit=1 << 30)


def empty(like: Tensor, shape: torch.Size | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised, contiguous tensor, by default of the shape and type of `like`; large ones from the pool."""
    shape, dtype = like.shape if shape is None else shape, like.dtype if dtype is None else dtype
    if shape.numel() * dtype.itemsize < LARGE:
        return like.new_empty(shape, dtype=dtype)
    return _pool.empty(dtype, shape)
