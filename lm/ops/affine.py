"""Linear maps on a CPU: the compiled kernels of affine.c as autograd functions.

Inputs are float32 or bfloat16, weights float32, and so are the gradients of weights; sums are made in float32.
"""

import ctypes
import functools
from ctypes import POINTER, Array, c_int, c_int32, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lm.native.build import Library
from lm.native.choice import TYPES, prepared, thread_count
from lm.recurrence.cpu import empty

SHORTEST = 16
"""Steps of a sequence from which packing the weights is worth it."""
LARGEST = 1 << 20
"""Weights of a matrix; larger ones would take much memory for their gradient, and PyTorch is as fast there."""


class Affine(ctypes.Structure):
    """`affine` of affine.c."""

    _fields_ = [
        *((name, c_int32) for name in ("type", "threads")),
        *((name, c_int64) for name in "NMK"),
        *((name, c_void_p) for name in ("x", "weight", "bias", "back", "y", "residual", "sum")),
        *((name, c_void_p) for name in ("grad", "grad_sum", "grad_x", "grad_weight", "grad_bias")),
        *((name, c_void_p) for name in ("panels", "squared", "squared_of")),
    ]


library = Library(
    Path(__file__).with_name("affine.c"),
    affine_columns=(c_int, c_int),
    affine_forward=(c_int, POINTER(Affine), c_int),
    affine_backward=(c_int, POINTER(Affine), c_int),
)


@functools.cache
def columns(dtype: torch.dtype) -> int:
    """What numbers of channels must be multiples of; 0 where the processor has something faster for this type."""
    return library().affine_columns(TYPES[dtype])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See `lm.ops.linear`."""
    bias = None if bias is None else bias.contiguous()
    return _Linear.apply(x.contiguous(), weight.contiguous(), bias, torch.is_grad_enabled())


def squared_relu_mlp(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """See `lm.ops.squared_relu_mlp`."""
    return _MLP.apply(x.contiguous(), up.contiguous(), down.contiguous(), torch.is_grad_enabled())


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, differentiable: bool) -> Tensor:
        y, back = affine_forward(x, weight, bias, differentiable=differentiable)
        ctx.save_for_backward(x, weight, back)
        ctx.has_bias = bias is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight, back = ctx.saved_tensors
        return *affine_backward(x, weight, back, grad.contiguous(), ctx.has_bias), None


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, up: Tensor, down: Tensor, differentiable: bool) -> Tensor:
        y, *kept = mlp_forward(x, up, down, differentiable=differentiable)
        ctx.save_for_backward(x, up, down, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, up, down, *kept = ctx.saved_tensors
        return *mlp_backward(grad.contiguous(), x, up, down, *kept), None


def affine_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, differentiable: bool = True
) -> tuple[Tensor, Tensor | None]:
    """y and, if this is to be differentiated, the weights packed for that. All tensors are contiguous.

    With a `residual` in float32, (..., M), the first is residual + y in float32.
    """
    (call,) = maps = _maps(x.dtype, x.shape, (weight.shape,), torch.get_num_threads(), "forward")
    y, back = _outputs(call, x, weight, residual, differentiable)
    call.x, call.bias = x.data_ptr(), _address(bias)
    _check(library().affine_forward(maps, 1))
    return y, back


def affine_backward(
    x: Tensor, weight: Tensor, back: Tensor, grad: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of x, of the weights, and of the bias.

    Args:
        back: from `affine_forward`.
        grad: of y in x's type, or of residual + y in float32.
    """
    grad_x, grad_weight = empty(x), torch.empty_like(weight)
    grad_bias = weight.new_empty(len(weight)) if has_bias else None
    (call,) = maps = _maps(x.dtype, x.shape, (weight.shape,), torch.get_num_threads(), "backward")
    call.x, call.back, call.grad_bias = x.data_ptr(), back.data_ptr(), _address(grad_bias)
    call.grad_x, call.grad_weight = grad_x.data_ptr(), grad_weight.data_ptr()
    _set_grad(call, x, grad)
    _check(library().affine_backward(maps, 1))
    return grad_x, grad_weight, grad_bias


def mlp_forward(
    x: Tensor, up: Tensor, down: Tensor, residual: Tensor | None = None, differentiable: bool = True
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """y, or residual + y, of `lm.ops.squared_relu_mlp`, and what `mlp_backward` takes as `kept`."""
    first, last = maps = _maps(x.dtype, x.shape, (up.shape, down.shape), torch.get_num_threads(), "forward")
    hidden, up_back = _outputs(first, x, up, None, differentiable)
    y, down_back = _outputs(last, x, down, residual, differentiable)
    first.x = x.data_ptr()
    _check(library().affine_forward(maps, 2))
    return y, hidden, up_back, down_back


def mlp_backward(
    grad: Tensor, x: Tensor, up: Tensor, down: Tensor, hidden: Tensor, up_back: Tensor, down_back: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x and of the two matrices; grad as in `affine_backward`."""
    first, last = maps = _maps(x.dtype, x.shape, (up.shape, down.shape), torch.get_num_threads(), "backward")
    grad_x, grad_up, grad_down = empty(x), torch.empty_like(up), torch.empty_like(down)
    first.x, first.y, first.grad_x = x.data_ptr(), hidden.data_ptr(), grad_x.data_ptr()
    first.back, first.grad_weight = up_back.data_ptr(), grad_up.data_ptr()
    last.back, last.grad_weight = down_back.data_ptr(), grad_down.data_ptr()
    _set_grad(last, x, grad)
    _check(library().affine_backward(maps, 2))
    return grad_x, grad_up, grad_down


@prepared
def _maps(dtype: torch.dtype, x: torch.Size, weights: tuple[torch.Size, ...], threads: int, use: str) -> Array[Affine]:
    """One map, or two of which the second reads the squared ReLU of the first, for inputs and weights of these shapes.

    Forward and backward (`use`) have their own, so that neither finds an address that is the other's.
    """
    N = x[:-1].numel()
    maps = (Affine * len(weights))()
    for map, (M, K) in zip(maps, weights, strict=True):
        map.type, map.threads, map.N, map.M, map.K = TYPES[dtype], min(threads, thread_count(N * max(M, K))), N, M, K
    return maps


def _outputs(
    call: Affine, x: Tensor, weight: Tensor, residual: Tensor | None, differentiable: bool
) -> tuple[Tensor, Tensor | None]:
    """Memory for y, or residual + y, and for the packed weights."""
    y = empty(x if residual is None else residual, torch.Size((*x.shape[:-1], len(weight))))
    back = weight.new_empty(weight.shape, dtype=x.dtype) if differentiable else None
    call.weight, call.back, call.residual = weight.data_ptr(), _address(back), _address(residual)
    call.y, call.sum = (y.data_ptr(), None) if residual is None else (None, y.data_ptr())
    return y, back


def _set_grad(call: Affine, x: Tensor, grad: Tensor) -> None:
    call.grad, call.grad_sum = (grad.data_ptr(), None) if grad.dtype == x.dtype else (None, grad.data_ptr())


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _check(error: int) -> None:
    if error:
        raise MemoryError("no memory for a product of matrices")
