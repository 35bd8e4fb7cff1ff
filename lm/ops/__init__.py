"""Operations of a block that PyTorch does in several passes or slowly, and the choice of their kernels.

    rms_norm(x, weight, eps)                    y = weight x / sqrt(mean(x^2) + eps)
    squared_relu(x)                             y = max(x, 0)^2
    causal_convolution(x, past, weight, bias)   y_t = bias + sum over k < K of weight_k x_{t - K + 1 + k}
    cross_entropy(logits, targets)              mean of log(sum over v of exp(x_v)) - x_target
    total_norm(tensors)                         the norm of all elements together
    linear(x, weight, bias)                     y = x weight' + bias
    squared_relu_mlp(x, up, down)               y = max(x up', 0)^2 down'

On a CPU the first five are one or two passes over a sequence, forward and backward (elementwise.c), the others products
of matrices with what is between them (affine.c); `lm.ops.branch` joins them to whole residual branches. PyTorch's
operations compute single steps, for which a native call takes longer, and everything on other devices, under
torch.compile and torch.func, and where types, sizes or a missing compiler leave no choice. The native kernels can be
differentiated once. Their results do not depend on the number of threads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lm.native.choice import TYPES, choose
from lm.ops import affine, cpu, portable

__all__ = [
    "Dropout",
    "Linear",
    "RMSNorm",
    "branch_type",
    "causal_convolution",
    "cross_entropy",
    "linear",
    "rms_norm",
    "squared_relu",
    "squared_relu_mlp",
    "total_norm",
]


PLAIN = (Tensor, nn.Parameter)
"""Of other types, a tensor may have no memory of its own."""


def rms_norm(x: Tensor, weight: Tensor, eps: float | None = None) -> Tensor:
    """RMS norm (arXiv 1910.07467) over the last axis: y = weight x / sqrt(mean(x^2) + eps).

    Args:
        x: (..., D).
        weight: (D).
        eps: by default that of the type in which the norm is computed: float64 for float64, else float32.

    Returns:
        y (..., D) in x's type. Under autocast on a CPU, float32 becomes the type of autocast, to which the next
        projection would round it.
    """
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"rms_norm of x {tuple(x.shape)} needs a weight of its last axis, not {tuple(weight.shape)}")
    dtype = None if x.device.type != "cpu" else _autocast_type(x)
    if dtype is not None and _native(x, weight):
        return cpu.rms_norm(x, weight, eps, dtype)
    return portable.rms_norm(x, weight, eps, dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `torch.nn.functional.linear`: y = x weight' + bias, under autocast in its type.

    Args:
        x: (..., K).
        weight: (M, K).
        bias: (M).
    """
    dtype = _autocast_type(x)
    weights = (weight,) if bias is None else (weight, bias)
    if _native(x, *weights) and _multiplies(x, dtype) and _fits(dtype, weight, 2 if bias is None else None):
        return affine.linear(x.to(dtype), weight, bias)
    return functional.linear(x, weight, bias)


def squared_relu_mlp(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """max(x up', 0)^2 down', as two calls of `linear`; x (..., K), up (H, K), down (M, H)."""
    dtype = _autocast_type(x)
    if _native(x, up, down) and _multiplies(x, dtype) and _fits(dtype, up) and _fits(dtype, down):
        return affine.squared_relu_mlp(x.to(dtype), up, down)
    return linear(squared_relu(linear(x, up)), down)


def cross_entropy(logits: Tensor, targets: Tensor, ignored: int = -100) -> Tensor:
    """Mean negative log-likelihood in nats, in float32, of targets (...) under logits (..., V) of any type.

    Args:
        ignored: the value of targets that are left out; without any others the result is NaN.

    Raises:
        IndexError: a target is none of the V.
    """
    if targets.dtype == torch.int64 and type(targets) is Tensor and targets.device == logits.device and _native(logits):
        return cpu.cross_entropy(logits, targets, ignored)
    return functional.cross_entropy(logits.float().flatten(0, -2), targets.flatten(), ignore_index=ignored)


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all elements of the tensors together; not differentiable."""
    plain = all(x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous() for x in tensors)
    native = len(tensors) > 0 and plain and choose(tensors[0], portable, cpu) is cpu
    return (cpu if native else portable).total_norm(tensors)


def squared_relu(x: Tensor) -> Tensor:
    """Squared ReLU (arXiv 2109.08668): y = max(x, 0)^2, in x's shape and type."""
    return cpu.squared_relu(x) if _native(x) else portable.squared_relu(x)


def causal_convolution(x: Tensor, past: Tensor | None, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Depth-wise convolution over the present input and the K - 1 inputs before it.

        y_t = bias + sum over k < K of weight_k x_{t - K + 1 + k}

    Args:
        x: (B, T, D).
        past: (B, K - 1, D), the inputs before the first; zeros by default.
        weight: (K, D), K >= 1; the last row is for the present input.
        bias: (D).

    Returns:
        y (B, T, D), and the new past (B, K - 1, D), both in x's type.
    """
    _check_convolution(x, past, weight, bias)
    B, T, D = x.shape
    K = weight.shape[0]
    past = x.new_zeros(B, K - 1, D) if past is None else past.to(x.dtype)
    module = cpu if _native(x, weight, bias) else portable
    y = module.causal_convolution(x, past, weight, bias)
    return y, x[:, T - K + 1 :] if T >= K - 1 else torch.cat([past[:, T:], x], dim=1)


def _check_convolution(x: Tensor, past: Tensor | None, weight: Tensor, bias: Tensor) -> None:
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[0] < 1 or weight.shape[1] != x.shape[2]:
        raise ValueError(f"causal_convolution cannot apply weights {tuple(weight.shape)} to x {tuple(x.shape)}")
    expected = (x.shape[0], weight.shape[0] - 1, x.shape[2])
    if past is not None and past.shape != expected:
        raise ValueError(f"causal_convolution needs past of shape {expected}, not {tuple(past.shape)}")
    if bias.shape != x.shape[2:]:
        raise ValueError(f"causal_convolution needs a bias of shape {tuple(x.shape[2:])}, not {tuple(bias.shape)}")


class RMSNorm(nn.RMSNorm):
    """`rms_norm` as a module, with the parameter `weight` (width), initially 1."""

    weight: nn.Parameter

    def __init__(self, width: int) -> None:
        super().__init__(width)

    @property
    def epsilon(self) -> float:
        """What is added to the mean square of float32."""
        return torch.finfo(torch.float32).eps if self.eps is None else self.eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Linear(nn.Linear):
    """`linear` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Dropout(nn.Dropout):
    """Elements become 0 with probability p, the others are divided by 1 - p; in training only.

    On a CPU, PyTorch draws the random bits in one thread, which takes a tenth of a training step.
    """

    def forward(self, x: Tensor) -> Tensor:
        return cpu.dropout(x, None, self.p) if self._is_native(x) else super().forward(x)

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + forward(x)."""
        alike = residual.shape == x.shape and residual.dtype == torch.float32 and _plain(residual, x.device)
        if alike and self._is_native(x):
            return cpu.dropout(x, residual, self.p)
        return residual + self(x)

    def _is_native(self, x: Tensor) -> bool:
        if not self.training or not 0 < self.p < 1 or self.inplace or _is_traced():
            return False
        return x.numel() > 0 and x.dtype in TYPES and type(x) in PLAIN and choose(x, portable, cpu) is cpu


def branch_type(x: Tensor, maps: Sequence[Linear], others: Sequence[Tensor]) -> torch.dtype | None:
    """The type in which `lm.ops.branch` is to multiply, for a branch of these maps and other parameters that reads x.

    None where it is not to be used: where no gradients will be asked for, single steps, and where kernels are missing.
    """
    if not torch.is_grad_enabled() or x.dtype != torch.float32:
        return None
    dtype = _autocast_type(x)
    weights = [p for map in maps for p in (map.weight, map.bias) if p is not None]
    fused = _native(x, *others, *weights) and _multiplies(x, dtype) and all(_fits(dtype, map.weight) for map in maps)
    return dtype if fused else None


def _autocast_type(x: Tensor) -> torch.dtype:
    """The type in which a projection would read x."""
    autocast = x.dtype == torch.float32 and torch.is_autocast_enabled("cpu")
    return torch.get_autocast_dtype("cpu") if autocast else x.dtype


def _multiplies(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether x, brought to this type, is for the native kernels that multiply by matrices."""
    autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    readable = x.dtype in (torch.float32, autocast)
    if x.dim() < 3 or x.shape[1] < affine.SHORTEST or not readable:
        return False
    return dtype in TYPES and choose(x, portable, affine) is affine and affine.columns(dtype) > 0


def _fits(dtype: torch.dtype, weight: Tensor, multiple: int | None = None) -> bool:
    """Whether they multiply by a matrix of this size.

    Args:
        multiple: of what the number of outputs must be a multiple; by default as that of inputs.
    """
    columns, (outputs, inputs) = affine.columns(dtype), weight.shape
    return weight.numel() <= affine.LARGEST and inputs % columns == 0 and outputs % (multiple or columns) == 0


def _native(x: Tensor, *weights: Tensor) -> bool:
    """Whether the native kernels are to compute with x and these weights: x is a sequence (B, T, ...), not one step.

    The choice does not depend on B: a sample is the same, to the bit, whatever is beside it in a batch.
    """
    if x.dim() < 3 or x.shape[1] < 2 or x.numel() == 0:
        return False
    if _is_traced() or type(x) not in PLAIN:
        return False
    fits = all(y.dtype == torch.float32 and _plain(y, x.device) for y in weights)
    return fits and choose(x, portable, cpu) is cpu


def _is_traced() -> bool:
    """Whether a tensor may stand for others, of which nothing is known but their sizes."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _plain(x: Tensor, device: torch.device) -> bool:
    return type(x) in PLAIN and x.device == device
