"""The operations of `lm.ops` on a CPU: the compiled kernels of elementwise.c as autograd functions.

Inputs are float32, bfloat16 or float16, weights float32; sums are made in float32.
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_double, c_float, c_int, c_int32, c_int64, c_uint32, c_void_p
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lm.native.build import Library
from lm.native.choice import TYPES, prepared, thread_count
from lm.recurrence.cpu import View, empty, view
from lm.recurrence.portable import rows


class Norm(ctypes.Structure):
    """`norm` of elementwise.c."""

    _fields_ = [
        *((name, c_int32) for name in ("type", "y_type", "threads")),
        ("eps", c_float),
        *((name, c_int64) for name in "ND"),
        *((name, c_void_p) for name in ("x", "weight", "y", "scale", "grad_y", "residual", "grad_x", "grad_weight")),
    ]


class Relu2(ctypes.Structure):
    """`relu2` of elementwise.c."""

    _fields_ = [
        *((name, c_int32) for name in ("type", "threads")),
        ("count", c_int64),
        *((name, c_void_p) for name in ("x", "grad_y", "out")),
    ]


class Convolution(ctypes.Structure):
    """`convolution` of elementwise.c."""

    _fields_ = [
        *((name, c_int32) for name in ("type", "threads")),
        *((name, c_int64) for name in "BTDK"),
        *((name, View) for name in ("x", "past", "y", "grad_y", "grad_x", "grad_past")),
        *((name, c_void_p) for name in ("weight", "bias", "grad_weights")),
    ]


class Entropy(ctypes.Structure):
    """`entropy` of elementwise.c."""

    _fields_ = [
        *((name, c_int32) for name in ("type", "threads")),
        *((name, c_int64) for name in ("N", "V", "ignored")),
        *((name, c_void_p) for name in ("x", "targets", "losses", "largest", "log_sums", "grad_x")),
        ("grad", c_float),
    ]


class Dropout(ctypes.Structure):
    """`dropout` of elementwise.c."""

    _fields_ = [
        *((name, c_int32) for name in ("x_type", "out_type", "threads")),
        ("seed", c_uint32 * 2),
        ("least", c_uint32),
        ("scale", c_float),
        ("count", c_int64),
        *((name, c_void_p) for name in ("x", "residual", "out")),
    ]


class Span(ctypes.Structure):
    """`span` of elementwise.c."""

    _fields_ = [("data", c_void_p), ("count", c_int64)]


library = Library(
    Path(__file__).with_name("elementwise.c"),
    norm_forward=(None, POINTER(Norm)),
    norm_backward=(c_int, POINTER(Norm)),
    relu2_apply=(None, POINTER(Relu2)),
    convolution_forward=(None, POINTER(Convolution)),
    convolution_backward=(c_int, POINTER(Convolution)),
    entropy_forward=(c_int64, POINTER(Entropy), POINTER(c_float)),
    entropy_backward=(None, POINTER(Entropy)),
    dropout_apply=(None, POINTER(Dropout)),
    total_norm=(c_double, POINTER(Span), c_int64, POINTER(c_double), c_int),
)


def rms_norm(x: Tensor, weight: Tensor, eps: float | None, dtype: torch.dtype) -> Tensor:
    """See `lm.ops.rms_norm`; the result has `dtype`."""
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    return _RMSNorm.apply(x.contiguous(), weight.contiguous(), eps, dtype)


def squared_relu(x: Tensor) -> Tensor:
    """See `lm.ops.squared_relu`."""
    return _SquaredReLU.apply(x.contiguous())


def causal_convolution(x: Tensor, past: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """y of `lm.ops.causal_convolution`; `past` is of x's type."""
    return _CausalConvolution.apply(x, past, weight.contiguous(), bias.contiguous())


def cross_entropy(logits: Tensor, targets: Tensor, ignored: int) -> Tensor:
    """See `lm.ops.cross_entropy`."""
    return _CrossEntropy.apply(logits.contiguous(), targets.contiguous(), ignored)


def dropout(x: Tensor, residual: Tensor | None, p: float) -> Tensor:
    """See `lm.ops.Dropout`; 0 < p < 1, and a residual is float32."""
    seed = int(torch.randint(1 << 62, (), device="cpu"))
    return _Dropout.apply(x.contiguous(), None if residual is None else residual.contiguous(), p, seed)


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """See `lm.ops.total_norm`; the tensors are contiguous."""
    spans = (Span * len(tensors))(*(Span(x.data_ptr(), x.numel()) for x in tensors))
    sums, threads = (c_double * len(tensors))(), thread_count(sum(x.numel() for x in tensors))
    return torch.tensor(library().total_norm(spans, len(tensors), sums, threads), device="cpu", dtype=torch.float32)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        y, scale = norm_forward(x, weight, eps, dtype)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Tensor):
        x, weight, scale = ctx.saved_tensors
        return *norm_backward(x, weight, scale, grad_y.contiguous()), None, None


def norm_forward(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """y, and 1 / sqrt(mean(x^2) + eps), which backward needs. All tensors are contiguous."""
    y = empty(x, dtype=dtype)
    scale = x.new_empty(x.shape[:-1], dtype=torch.float32)
    call = _norm(x.shape, x.dtype, dtype, thread_count(x.numel()))
    call.x, call.weight, call.scale = x.data_ptr(), weight.data_ptr(), scale.data_ptr()
    call.eps, call.y = eps, y.data_ptr()
    library().norm_forward(call)
    return y, scale


def norm_backward(
    x: Tensor, weight: Tensor, scale: Tensor, grad_y: Tensor, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The gradients of x, to which `residual` is added, and of the weights."""
    grad_x, grad_weight = empty(x), torch.empty_like(weight)
    call = _norm(x.shape, x.dtype, grad_y.dtype, thread_count(x.numel()))
    call.x, call.weight, call.scale = x.data_ptr(), weight.data_ptr(), scale.data_ptr()
    call.grad_y, call.grad_x, call.grad_weight = grad_y.data_ptr(), grad_x.data_ptr(), grad_weight.data_ptr()
    call.residual = None if residual is None else residual.data_ptr()
    _check(library().norm_backward(call))
    return grad_x, grad_weight


@prepared
def _norm(shape: torch.Size, x_type: torch.dtype, y_type: torch.dtype, threads: int) -> Norm:
    return Norm(TYPES[x_type], TYPES[y_type], threads, N=shape[:-1].numel(), D=shape[-1])


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _relu2(x, None)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return _relu2(x, grad_y.contiguous())


def _relu2(x: Tensor, grad_y: Tensor | None) -> Tensor:
    out = empty(x)
    given = None if grad_y is None else grad_y.data_ptr()
    library().relu2_apply(
        Relu2(TYPES[x.dtype], thread_count(x.numel()), x.numel(), x.data_ptr(), given, out.data_ptr())
    )
    return out


class _CausalConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, past: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, past = rows(x), rows(past)
        ctx.save_for_backward(x, past, weight)
        return convolution_forward(x, past, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Tensor):
        x, past, weight = ctx.saved_tensors
        return convolution_backward(x, past, weight, rows(grad_y), ctx.needs_input_grad[1])


def convolution_forward(x: Tensor, past: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """y. The channels of x and past are contiguous, weights and bias entirely."""
    y = empty(x)
    call = _convolution(x.shape, x.dtype, len(weight), thread_count(x.numel()))
    call.x, call.past, call.y = view(x), view(past), view(y)
    call.weight, call.bias = weight.data_ptr(), bias.data_ptr()
    library().convolution_forward(call)
    return y


def convolution_backward(
    x: Tensor, past: Tensor, weight: Tensor, grad_y: Tensor, wants_past: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The gradients of x, of past if it is wanted, of the weights and of the bias."""
    K, D = weight.shape
    grad_x, grad_past, grad_weights = empty(x), empty(past) if wants_past else None, weight.new_empty(K + 1, D)
    call = _convolution(x.shape, x.dtype, K, thread_count(x.numel()))
    call.x, call.past, call.grad_y, call.grad_x = view(x), view(past), view(grad_y), view(grad_x)
    call.grad_past = View() if grad_past is None else view(grad_past)
    call.weight, call.grad_weights = weight.data_ptr(), grad_weights.data_ptr()
    _check(library().convolution_backward(call))
    return grad_x, grad_past, grad_weights[:-1], grad_weights[-1]


@prepared
def _convolution(shape: torch.Size, dtype: torch.dtype, K: int, threads: int) -> Convolution:
    return Convolution(TYPES[dtype], threads, *shape, K)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, ignored: int) -> Tensor:
        sums = torch.empty((3, targets.numel()), dtype=torch.float32, device="cpu")
        call, mean = _entropy(logits, targets, ignored, sums), c_float()
        ctx.count, ctx.ignored = library().entropy_forward(call, mean), ignored
        if ctx.count < 0:
            raise IndexError(f"a target is none of the {logits.shape[-1]}")
        ctx.save_for_backward(logits, targets, sums)
        return torch.tensor(mean.value, device="cpu")

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        logits, targets, sums = ctx.saved_tensors
        grad_logits, call = empty(logits), _entropy(logits, targets, ctx.ignored, sums)
        call.grad_x, call.grad = grad_logits.data_ptr(), grad.item() / max(1, ctx.count)
        library().entropy_backward(call)
        return grad_logits, None, None


def _entropy(logits: Tensor, targets: Tensor, ignored: int, sums: Tensor) -> Entropy:
    """What forward and backward share."""
    call = Entropy(TYPES[logits.dtype], thread_count(logits.numel()), targets.numel(), logits.shape[-1], ignored)
    call.x, call.targets = logits.data_ptr(), targets.data_ptr()
    call.losses, call.largest, call.log_sums = (y.data_ptr() for y in sums)
    return call


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, residual: Tensor | None, p: float, seed: int) -> Tensor:
        ctx.p, ctx.seed, ctx.dtype, ctx.adds = p, seed, x.dtype, residual is not None
        return dropout_apply(x, residual, p, seed, x.dtype if residual is None else residual.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        grad_x = dropout_apply(grad.contiguous(), None, ctx.p, ctx.seed, ctx.dtype)
        return grad_x, grad if ctx.adds else None, None, None


def dropout_apply(x: Tensor, residual: Tensor | None, p: float, seed: int, dtype: torch.dtype) -> Tensor:
    """residual + dropout(x) in `dtype`, with the random bits of this seed, below 2^64."""
    out = empty(x, dtype=dtype)
    call = Dropout(TYPES[x.dtype], TYPES[dtype], thread_count(x.numel()), (seed & 0xFFFFFFFF, seed >> 32))
    call.least, call.scale, call.count = min(round(p * (1 << 32)), (1 << 32) - 1), 1 / (1 - p), x.numel()
    call.x, call.out = x.data_ptr(), out.data_ptr()
    call.residual = None if residual is None else residual.data_ptr()
    library().dropout_apply(call)
    return out


def _check(error: int) -> None:
    if error:
        raise MemoryError("no memory for the gradients of the weights")
