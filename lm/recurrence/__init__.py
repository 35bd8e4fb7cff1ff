"""The recurrence h_t = a_t h_{t-1} + b_t, and the choice of the kernels that compute it.

Four functions, each registered by `lm.native.operation`: autograd, autocast and torch.compile see one opaque operation
with its own backward. All take and return the state explicitly:

    linear_scan(a, b, h0)         h_t = a_t h_{t-1} + b_t
    mingru_scan(projection, h0)   z = sigmoid(k), h_t = (1 - z_t) h_{t-1} + z_t g(c_t)
    minlstm_scan(projection, h0)  the same with k = softplus(-f) - softplus(-i)
    selective_scan(u, ...)        Mamba's, with N numbers of state per channel, a = exp(dt A), b = dt B u

Sequences are (B, T, D), states (B, D). `h` has the type of the input. The state `h_last` and all arithmetic are float32
(float64 for float64 inputs), whatever the input's type, also under autocast.
"""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from lm.native.choice import choose
from lm.native.operation import Operation, custom_op
from lm.recurrence import cpu, portable, selective
from lm.recurrence.portable import Kind

__all__ = ["linear_scan", "mingru_scan", "minlstm_scan", "selective_scan"]


def kernels(x: Tensor, native: ModuleType = cpu) -> ModuleType:
    """The module whose kernels compute with x, chosen by its device and LM_BACKEND: see `lm.native.choice.choose`."""
    return choose(x, portable, native, "lm.recurrence.cuda")


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
    common = torch.promote_types(a.dtype, b.dtype)
    a, b = a.to(common), b.to(common)
    return _linear(a, b, _state(b, h0))


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
    _check_selective((u, delta, A, B, C, skip), h0)
    wide = portable.compute_type(u)
    y, h_last, _ = _selective(u, delta, A.to(wide), B, C, skip.to(wide), _state(u, h0))
    return y, h_last


def _check_selective(inputs: Sequence[Tensor], h0: Tensor | None) -> None:
    u, delta, A, B, C, skip = inputs
    if u.dim() != 3 or u.shape[1] < 1 or A.dim() != 2 or A.shape[0] < 1:
        raise ValueError(f"selective_scan cannot read u of shape {tuple(u.shape)} with A of {tuple(A.shape)}")
    (batch, T, D), N = u.shape, A.shape[0]
    expected = {
        "delta": (delta, (batch, T, D)),
        "A": (A, (N, D)),
        "B": (B, (batch, T, N)),
        "C": (C, (batch, T, N)),
        "skip": (skip, (D,)),
        "h0": (h0, (batch, N, D)),
    }
    for name, (x, shape) in expected.items():
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


def _fake_state(h: Tensor) -> Tensor:
    return h.new_empty((h.shape[0], h.shape[2]), dtype=portable.compute_type(h))


# ---------------------------------------------------------------- registered operations


def _differentiate(forward: Operation, backward: Operation) -> None:
    """Register the backward of an operation (x, ..., h0) -> (h, h_last); it is called with x, h, h0 and gradients."""

    def keep(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[0], output[0], inputs[-1])

    def gradients(ctx, grad_h: Tensor, grad_last: Tensor):
        x, h, h0 = ctx.saved_tensors
        *grads, grad_h0 = backward(x, h, h0, grad_h, grad_last)
        return *grads, None if h0 is None else grad_h0

    forward.register_autograd(gradients, setup_context=keep)
    backward.forbid_autograd()


@custom_op("lm::linear_scan")
def _linear(a: Tensor, b: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor]:
    return kernels(b).scan_forward(Kind.LINEAR, (a, b), h0)


@custom_op("lm::linear_scan_backward")
def _linear_backward(
    a: Tensor, h: Tensor, h0: Tensor | None, grad_h: Tensor, grad_last: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    module = kernels(a)
    grads = module.empty(a), module.empty(a)
    return *grads, module.scan_backward(Kind.LINEAR, a, grads, h, h0, grad_h, grad_last)


@_linear.register_fake
def _(a: Tensor, b: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor]:
    return portable.empty(b), _fake_state(b)


@_linear_backward.register_fake
def _(a: Tensor, h: Tensor, h0: Tensor | None, grad_h: Tensor, grad_last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return portable.empty(a), portable.empty(a), _fake_state(h)


_differentiate(_linear, _linear_backward)


def _define_cell(name: str, kind: Kind) -> Operation:
    """Register the scan of a cell, minGRU or minLSTM."""

    @custom_op(f"lm::{name}")
    def forward(projection: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor]:
        return kernels(projection).scan_forward(kind, (projection,), h0)

    @custom_op(f"lm::{name}_backward")
    def backward(
        projection: Tensor, h: Tensor, h0: Tensor | None, grad_h: Tensor, grad_last: Tensor
    ) -> tuple[Tensor, Tensor]:
        module = kernels(projection)
        grad = module.empty(projection)
        return grad, module.scan_backward(kind, projection, (grad,), h, h0, grad_h, grad_last)

    @forward.register_fake
    def _(projection: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor]:
        (x, *_) = kind.split([projection])
        return portable.empty(x), _fake_state(x)

    @backward.register_fake
    def _(projection: Tensor, h: Tensor, h0: Tensor | None, grad_h: Tensor, grad_last: Tensor) -> tuple[Tensor, Tensor]:
        return portable.empty(projection), _fake_state(h)

    _differentiate(forward, backward)
    return forward


_mingru = _define_cell("mingru_scan", Kind.MINGRU)
_minlstm = _define_cell("minlstm_scan", Kind.MINLSTM)


@custom_op("lm::selective_scan")
def _selective(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor, h0: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return kernels(u, selective).selective_forward((u, delta, A, B, C, skip), h0)


@custom_op("lm::selective_scan_backward")
def _selective_backward(
    inputs: Sequence[Tensor], starts: Tensor, grad_y: Tensor, grad_last: Tensor | None
) -> list[Tensor]:
    return kernels(inputs[0], selective).selective_backward(inputs, starts, grad_y, grad_last)


@_selective.register_fake
def _(u, delta, A, B, C, skip, h0):
    return portable.empty(u), A.new_empty((u.shape[0], *A.shape)), A.new_empty(portable.starts_shape(u, A))


@_selective_backward.register_fake
def _(inputs, starts, grad_y, grad_last):
    return [*map(portable.empty, inputs), starts.new_empty(starts[:, 0].shape)]


def _keep_selective(ctx, inputs, output) -> None:
    *kept, h0 = inputs
    ctx.save_for_backward(*kept, output[2])
    ctx.has_h0 = h0 is not None
    ctx.set_materialize_grads(False)  # training does not use h_last, and nothing outside sees the states in between


def _selective_gradients(ctx, grad_y: Tensor | None, grad_last: Tensor | None, _: None):
    *inputs, starts = ctx.saved_tensors
    grad_y = torch.zeros_like(inputs[0]) if grad_y is None else grad_y
    *grads, grad_h0 = _selective_backward(inputs, starts, grad_y, grad_last)
    return *grads, grad_h0 if ctx.has_h0 else None


_selective.register_autograd(_selective_gradients, setup_context=_keep_selective)
_selective_backward.forbid_autograd()
