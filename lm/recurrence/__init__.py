"""h_t = a_t h_{t-1} + b_t: the one operation everything rests on.

Four functions, each registered with `torch.library` so that autograd, autocast and torch.compile see one opaque
operation with its own backward. All take and return the state explicitly:

    linear_scan(a, b, h0)         h_t = a_t h_{t-1} + b_t
    mingru_scan(projection, h0)   z = sigmoid(k), h_t = (1 - z_t) h_{t-1} + z_t g(c_t)
    minlstm_scan(projection, h0)  the same with k = softplus(-f) - softplus(-i)
    selective_scan(u, ...)        N numbers of state a channel, a = exp(dt A), b = dt B u: Mamba's

Sequences are (B, T, D), states (B, D). `h` comes back in the type of the input; the state `h_last`, and everything
inside, is float32 (float64 for float64 inputs) whatever the input's type, autocast included.
"""

import functools
import importlib
import os
import warnings
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from lm.native.build import BuildError
from lm.recurrence import cpu, portable, selective

__all__ = ["linear_scan", "mingru_scan", "minlstm_scan", "selective_scan"]

BACKENDS = ("auto", "portable", "native", "triton")


def kernels(x: Tensor, native: ModuleType = cpu) -> ModuleType:
    """The module whose kernels serve x, `native` on a CPU: the one place where a backend is chosen.

    The environment variable LM_BACKEND overrules it: `portable`; `native`, the kernels of the tensor's device, which
    fails where `auto` would fall back; or `triton`, on a CPU too (in Triton's interpreter: TRITON_INTERPRET=1).
    """
    backend = os.environ.get("LM_BACKEND", "auto")
    if backend not in BACKENDS:
        raise ValueError(f"LM_BACKEND is {backend!r}; it can be {', '.join(BACKENDS)}")
    if backend == "triton" or (backend != "portable" and x.device.type == "cuda"):
        return _triton(required=backend != "auto")
    if backend == "portable" or x.device.type != "cpu" or x.dtype not in cpu.TYPES:
        return portable
    try:
        native.library()
    except BuildError as error:
        if backend == "native":
            raise
        _warn_once(f"{error}; the slower plain torch path serves")
        return portable
    return native


@functools.cache
def _triton(required: bool) -> ModuleType:
    """The Triton kernels, imported no sooner than something asks for them."""
    try:
        return importlib.import_module("lm.recurrence.cuda")
    except ImportError as error:
        if required:
            raise
        _warn_once(f"the kernels for a GPU need Triton ({error}); the slower plain torch path serves")
        return portable


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def linear_scan(a: Tensor, b: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The diagonal linear recurrence h_t = a_t h_{t-1} + b_t.

    Args:
        a, b: (B, T, D), T >= 1; brought to their common type. Meant for |a| <= 1.
        h0: (B, D), the state before the first step; zero by default.

    Returns:
        h (B, T, D) in the type of the inputs, and h_last (B, D), never narrower than float32.
    """
    if a.shape != b.shape:
        raise ValueError(f"linear_scan needs a and b of one shape, not {tuple(a.shape)} and {tuple(b.shape)}")
    _check("linear_scan", b, b.shape[-1], h0)
    wide = torch.promote_types(a.dtype, b.dtype)
    return _linear(a.to(wide), b.to(wide), _state(b, h0))


def mingru_scan(projection: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The minGRU cell (arXiv 2410.01201, section 3.1) after its projection.

    Args:
        projection: (B, T, 2D) = [gate logits k | candidate c], T >= 1.
        h0: (B, D), the state before the first step; zero by default.

    Returns:
        h (B, T, D) in the projection's type, and h_last (B, D), never narrower than float32.
    """
    _check("mingru_scan", projection, projection.shape[-1] / 2, h0)
    return _mingru(projection, _state(projection, h0))


def minlstm_scan(projection: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The minLSTM cell (arXiv 2410.01201, section 3.2, length-independent gates) after its projection.

    Args:
        projection: (B, T, 3D) = [forget logits f | input logits i | candidate c], T >= 1.
        h0: (B, D), the state before the first step; zero by default.

    Returns:
        h (B, T, D) in the projection's type, and h_last (B, D), never narrower than float32.
    """
    _check("minlstm_scan", projection, projection.shape[-1] / 3, h0)
    return _minlstm(projection, _state(projection, h0))


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor, h0: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mamba's selective scan (arXiv 2312.00752, algorithm 2): N numbers of state for every channel.

        dt_t = softplus(delta_t)    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t    y_t = C_t h_t + skip u_t

    Zero-order hold for A, Euler for B, as in Mamba's code. Backward computes the states again, a few at a time:
    those of all steps, (B, T, N, D), are never in memory.

    Args:
        u, delta: (B, T, D), T >= 1: the input, and the step size before its softplus.
        A: (N, D), never positive. skip: (D). float32, or float64 if u is.
        B, C: (B, T, N), shared by the channels; u, delta, B and C are of one type.
        h0: (B, N, D), the state before the first step; zero by default.

    Returns:
        y (B, T, D) in u's type, and h_last (B, N, D), never narrower than float32.
    """
    _check_selective(u, delta, A, B, C, skip, h0)
    wide = portable.compute_type(u)
    y, h_last, _ = _selective(u, delta, A.to(wide), B, C, skip.to(wide), _state(u, h0))
    return y, h_last


def _check_selective(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor, h0: Tensor | None
) -> None:
    if u.dim() != 3 or u.shape[1] < 1 or A.dim() != 2 or A.shape[0] < 1:
        raise ValueError(f"selective_scan cannot read u of shape {tuple(u.shape)} with A of {tuple(A.shape)}")
    (batch, T, D), N = u.shape, A.shape[0]
    wanted = {
        "delta": (batch, T, D),
        "A": (N, D),
        "B": (batch, T, N),
        "C": (batch, T, N),
        "skip": (D,),
        "h0": (batch, N, D),
    }
    for (name, shape), x in zip(wanted.items(), (delta, A, B, C, skip, h0), strict=True):
        if x is not None and x.shape != shape:
            raise ValueError(f"selective_scan needs {name} of shape {shape}, not {tuple(x.shape)}")
        if x is not None and name in ("delta", "B", "C") and x.dtype != u.dtype:
            raise ValueError(f"selective_scan needs {name} in u's type, {u.dtype}, not {x.dtype}")


def _check(name: str, x: Tensor, width: float, h0: Tensor | None) -> None:
    if x.dim() != 3 or x.shape[1] < 1 or width != int(width):
        raise ValueError(f"{name} cannot read a sequence of shape {tuple(x.shape)}")
    if h0 is not None and h0.shape != (x.shape[0], int(width)):
        raise ValueError(f"{name} needs h0 of shape {(x.shape[0], int(width))}, not {tuple(h0.shape)}")


def _state(x: Tensor, h0: Tensor | None) -> Tensor | None:
    return None if h0 is None else h0.to(portable.compute_type(x))


def _grad_h0(h0: Tensor | None, grad: Tensor) -> Tensor | None:
    return None if h0 is None else grad


@torch.library.custom_op("lm::linear_scan", mutates_args=())
def _linear(a: Tensor, b: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor]:
    return kernels(b).linear_forward(a, b, h0)


@torch.library.custom_op("lm::linear_scan_backward", mutates_args=())
def _linear_backward(
    a: Tensor, h: Tensor, h0: Tensor | None, grad_h: Tensor, grad_last: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return kernels(a).linear_backward(a, h, h0, grad_h, grad_last)


@_linear.register_fake
def _(a: Tensor, b: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(b, memory_format=torch.contiguous_format), _fake_state(b, b.shape[-1])


@_linear_backward.register_fake
def _(a: Tensor, h: Tensor, h0: Tensor | None, grad_h: Tensor, grad_last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad = torch.empty_like(a, memory_format=torch.contiguous_format)
    return grad, torch.empty_like(grad), _fake_state(a, a.shape[-1])


def _fake_state(x: Tensor, width: int) -> Tensor:
    return x.new_empty((x.shape[0], width), dtype=portable.compute_type(x))


def _keep_linear(ctx, inputs, output) -> None:
    a, _, h0 = inputs
    ctx.save_for_backward(a, output[0], h0)


def _linear_gradients(ctx, grad_h: Tensor, grad_last: Tensor):
    a, h, h0 = ctx.saved_tensors
    grad_a, grad_b, grad_h0 = _linear_backward(a, h, h0, grad_h, grad_last)
    return grad_a, grad_b, _grad_h0(h0, grad_h0)


_linear.register_autograd(_linear_gradients, setup_context=_keep_linear)


def _define_cell(name: str, parts: int) -> Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]:
    """Register the scan of a cell whose projection has so many parts, the last of them the candidate."""

    @torch.library.custom_op(f"lm::{name}", mutates_args=())
    def forward(projection: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor]:
        return kernels(projection).cell_forward(projection, h0, parts)

    @torch.library.custom_op(f"lm::{name}_backward", mutates_args=())
    def backward(
        projection: Tensor, h: Tensor, h0: Tensor | None, grad_h: Tensor, grad_last: Tensor
    ) -> tuple[Tensor, Tensor]:
        return kernels(projection).cell_backward(projection, h, h0, grad_h, grad_last, parts)

    @forward.register_fake
    def _(projection: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor]:
        B, T, width = projection.shape
        return projection.new_empty((B, T, width // parts)), _fake_state(projection, width // parts)

    @backward.register_fake
    def _(projection: Tensor, h: Tensor, h0: Tensor | None, grad_h: Tensor, grad_last: Tensor) -> tuple[Tensor, Tensor]:
        grad = torch.empty_like(projection, memory_format=torch.contiguous_format)
        return grad, _fake_state(projection, h.shape[-1])

    def keep(ctx, inputs, output) -> None:
        projection, h0 = inputs
        ctx.save_for_backward(projection, output[0], h0)

    def gradients(ctx, grad_h: Tensor, grad_last: Tensor):
        projection, h, h0 = ctx.saved_tensors
        grad, grad_h0 = backward(projection, h, h0, grad_h, grad_last)
        return grad, _grad_h0(h0, grad_h0)

    forward.register_autograd(gradients, setup_context=keep)
    return forward


_mingru = _define_cell("mingru_scan", parts=2)
_minlstm = _define_cell("minlstm_scan", parts=3)


@torch.library.custom_op("lm::selective_scan", mutates_args=())
def _selective(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor, h0: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return kernels(u, selective).selective_forward(u, delta, A, B, C, skip, h0)


@torch.library.custom_op("lm::selective_scan_backward", mutates_args=())
def _selective_backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor,
    starts: Tensor,
    grad_y: Tensor,
    grad_last: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return kernels(u, selective).selective_backward(u, delta, A, B, C, skip, starts, grad_y, grad_last)


@_selective.register_fake
def _(u, delta, A, B, C, skip, h0):
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    return y, A.new_empty((u.shape[0], *A.shape)), A.new_empty(portable.starts_shape(u, A))


@_selective_backward.register_fake
def _(u, delta, A, B, C, skip, starts, grad_y, grad_last):
    grads = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta, A, B, C, skip))
    return *grads, A.new_empty((u.shape[0], *A.shape))


def _keep_selective(ctx, inputs, output) -> None:
    *kept, h0 = inputs
    ctx.save_for_backward(*kept, output[2])
    ctx.has_h0 = h0 is not None
    ctx.set_materialize_grads(False)  # training leaves h_last alone, and nobody sees the states in between


def _selective_gradients(ctx, grad_y: Tensor | None, grad_last: Tensor | None, _: None):
    u, *kept = ctx.saved_tensors
    grad_y = torch.zeros_like(u) if grad_y is None else grad_y
    *grads, grad_h0 = _selective_backward(u, *kept, grad_y, grad_last)
    return *grads, grad_h0 if ctx.has_h0 else None


_selective.register_autograd(_selective_gradients, setup_context=_keep_selective)
