"""The operations of `lm.ops` as PyTorch computes them: on any device, in any type, differentiable, compilable."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, eps: float | None, dtype: torch.dtype | None) -> Tensor:
    """See `lm.ops.rms_norm`; the result has `dtype`, or the one that PyTorch gives it."""
    y = functional.rms_norm(x, weight.shape, weight.to(x.dtype), eps)
    return y if dtype is None else y.to(dtype)


def squared_relu(x: Tensor) -> Tensor:
    """See `lm.ops.squared_relu`."""
    return functional.relu(x).square()


def causal_convolution(x: Tensor, past: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """y of `lm.ops.causal_convolution`; `past` is of x's type."""
    T, K = x.shape[1], weight.shape[0]
    weight = weight.to(x.dtype)
    padded = torch.cat([past, x], dim=1)  # (B, K - 1 + T, D)
    y = torch.addcmul(bias.to(x.dtype), x, weight[-1])
    for i in range(K - 1):
        y = torch.addcmul(y, padded[:, i : i + T], weight[i])
    return y


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """See `lm.ops.total_norm`."""
    return nn.utils.get_total_norm(tensors)
