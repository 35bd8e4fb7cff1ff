"""Muon's orthogonalisation: the singular values of each update become nearly one.

K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). `torch.optim.Muon` exists, but
orthogonalises in bfloat16 and one matrix after another, which is slow on a CPU, and has no AdamW for the others.
"""

import ctypes
import sys
from collections import defaultdict
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lm.native.build import Library
from lm.native.choice import choose

Polynomials = Sequence[tuple[float, float, float]]
"""For each step of the iteration a, b, c of x <- a x + b x^3 + c x^5, which is applied to singular values."""
POLYNOMIALS: dict[str, Polynomials] = {
    "jordan5": ((3.4445, -4.7750, 2.0315),) * 5,
    "polar5": (
        (8.2052, -22.902, 16.461),
        (4.0664, -2.8612, 0.5184),
        (3.9096, -2.8234, 0.52504),
        (3.2856, -2.4153, 0.48529),
        (2.3007, -1.6689, 0.41881),
    ),
    "polar4": (
        (8.0714, -22.529, 16.192),
        (3.8707, -2.8145, 0.52699),
        (3.1582, -2.3216, 0.4749),
        (2.2, -1.5771, 0.40894),
    ),
    "polar3": ((7.607, -21.232, 15.261), (3.1862, -2.3423, 0.4772), (2.2204, -1.5959, 0.41095)),
}
"""jordan5: Jordan's five equal steps, which bring singular values above 0.01 into [0.68, 1.14]. The others are those of
Polar Express (arXiv 2505.16932): each step is the odd quintic that is closest to one on the interval in which the steps
before it leave all values from 0.001 (polar5), 0.005 (polar4) or 0.02 (polar3) to 1. Values are divided by 1.01 before
all steps but the last, so that those that rounding makes larger than one do no harm."""
MOST_STEPS = 5
"""As in muon.c."""
LARGEST = 1024
"""The longest of the shorter sides that is given to a single thread."""


class Matrix(ctypes.Structure):
    """`matrix` of muon.c."""

    _fields_ = [
        *((name, c_void_p) for name in ("p", "momentum", "second", "grad")),
        *((name, c_int64) for name in ("rows", "columns")),
    ]


class Options(ctypes.Structure):
    """`options` of muon.c."""

    _fields_ = [
        *((name, c_int32) for name in ("count", "steps", "threads")),
        ("polynomials", c_float * 3 * MOST_STEPS),
        *((name, c_float) for name in ("lr", "decay", "momentum", "beta2")),
    ]


library = Library(Path(__file__).with_name("muon.c"), muon_update=(c_int, POINTER(Matrix), POINTER(Options)))


def update(
    parameters: list[Tensor], grads: list[Tensor], momenta: list[Tensor], seconds: list[Tensor], options: dict[str, Any]
) -> None:
    """Take one step: momenta move towards the gradients, parameters along the orthogonalised updates.

    Args:
        parameters, grads, momenta: matrices (M, N), one of each for every parameter.
        seconds: the mean squares of rows (M, 1) that NorMuon needs, updated; empty if beta2 is 0.
        options: lr, weight_decay, momentum, beta2, and polynomials, one of the names of POLYNOMIALS.
    """
    form = update_native if _is_native(parameters, grads) else update_portable
    form(parameters, grads, momenta, seconds, options)


def _is_native(parameters: Sequence[Tensor], grads: Sequence[Tensor]) -> bool:
    """Whether muon.c is to compute, which gives each thread whole matrices."""
    if len(parameters) < torch.get_num_threads() or max(min(p.shape) for p in parameters) > LARGEST:
        return False
    tensors = (*parameters, *grads)
    if any(x.dtype != torch.float32 or x.device.type != "cpu" or not x.is_contiguous() for x in tensors):
        return False
    return choose(parameters[0], portable=torch, native=sys.modules[__name__]) is not torch


def update_native(
    parameters: list[Tensor], grads: list[Tensor], momenta: list[Tensor], seconds: list[Tensor], options: dict[str, Any]
) -> None:
    """`update` for contiguous matrices of float32 on a CPU."""
    matrices = (Matrix * len(parameters))()
    for i, (p, grad, momentum) in enumerate(zip(parameters, grads, momenta, strict=True)):
        second = seconds[i].data_ptr() if seconds else None
        matrices[i] = Matrix(p.data_ptr(), momentum.data_ptr(), second, grad.data_ptr(), *p.shape)
    threads, decay = torch.get_num_threads(), 1 - options["lr"] * options["weight_decay"]
    numbers = options["lr"], decay, options["momentum"], options["beta2"]
    polynomials = POLYNOMIALS[options["polynomials"]]
    table = (c_float * 3 * MOST_STEPS)(*((c_float * 3)(*abc) for abc in polynomials))
    if library().muon_update(matrices, Options(len(matrices), len(polynomials), threads, table, *numbers)):
        raise MemoryError("no memory for Muon's products")


def update_portable(
    parameters: list[Tensor], grads: list[Tensor], momenta: list[Tensor], seconds: list[Tensor], options: dict[str, Any]
) -> None:
    """`update` with torch's operations, on any device."""
    torch._foreach_lerp_(momenta, grads, 1 - options["momentum"])
    between = torch._foreach_lerp(grads, momenta, options["momentum"])  # Nesterov
    updates = orthogonalise(between, POLYNOMIALS[options["polynomials"]])
    torch._foreach_mul_(parameters, 1 - options["lr"] * options["weight_decay"])
    for i, (p, change) in enumerate(zip(parameters, updates, strict=True)):
        # Equal root-mean-square per row for tall matrices, as in Jordan's implementation.
        scale = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
        change = change * row_factors(change, seconds[i], options["beta2"]) if seconds else change
        p.add_(change.to(p.dtype), alpha=-options["lr"] * scale)


def row_factors(update: Tensor, second: Tensor, beta2: float) -> Tensor:
    """Factors (M, 1) for the rows of an update (M, N), which keep its norm: NorMuon (arXiv 2510.05491).

    Each row is divided by the root of its second moment, a moving average of its mean square, here without the
    correction for its start at zero, which is the same for all rows. `second` (M, 1) is updated.
    """
    square = torch.linalg.vector_norm(update, dim=1, keepdim=True, dtype=torch.float32).square() / update.shape[1]
    second.lerp_(square, 1 - beta2)
    factors = 1 / (second.sqrt() + 1e-8)
    return factors * (square.sum() / (square * factors.square()).sum().clamp_min(1e-30)).sqrt()


def orthogonalise(matrices: Sequence[Tensor], polynomials: Polynomials) -> list[Tensor]:
    """Replace the singular values of matrices (M, N) by values near 1, with a Newton-Schulz iteration.

    Computes in bfloat16 on an NVIDIA GPU and in float32 elsewhere, and returns that type. Matrices of one shape, or
    without a GPU of one smaller side, are computed together.
    """
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, x in enumerate(matrices):
        groups[tuple(x.shape) if x.is_cuda else (min(x.shape),)].append(i)
    results: dict[int, Tensor] = {}
    for group in groups.values():
        form = newton_schulz if matrices[group[0]].is_cuda else newton_schulz_gram
        results |= zip(group, form([matrices[i] for i in group], polynomials), strict=True)
    return [results[i] for i in range(len(matrices))]


def newton_schulz(matrices: Sequence[Tensor], polynomials: Polynomials, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Iterate x <- a x + b (x x^T) x + c (x x^T)^2 x on matrices of one shape, each divided by its norm first."""
    x = torch.stack(list(matrices)).to(dtype)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x  # the iteration commutes with this, and x x^T is then the smaller of the two products
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for a, b, c in polynomials:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def newton_schulz_gram(matrices: Sequence[Tensor], polynomials: Polynomials) -> list[Tensor]:
    """The same in float32 with x x^T alone, whose result is multiplied by x at the end: half the work if N >= 3 M.

    The matrices need only be equal in their smaller side; those with M > N are multiplied from the other side. In
    bfloat16 this form fails: the errors of x x^T grow twelvefold in each step. In float32 results are off by 1e-5, or
    by a few thousandths for a matrix of low rank.
    """
    matrices = [matrix.float() for matrix in matrices]
    gram = torch.stack([x.mT @ x if x.shape[0] > x.shape[1] else x @ x.mT for x in matrices])
    norm = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].sqrt() + 1e-7
    factors = gram_polynomial(gram / norm.square(), polynomials) / norm
    return [x @ f if x.shape[0] > x.shape[1] else f @ x for x, f in zip(matrices, factors, strict=True)]


def gram_polynomial(gram: Tensor, polynomials: Polynomials) -> Tensor:
    """The matrix (count, M, M) by which all steps multiply each x; gram (count, M, M) is x x^T.

    A step maps x to p x with p = a + b g + c g^2, hence g = x x^T to p g p.
    """
    product = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device).expand_as(gram)
    for step, (a, b, c) in enumerate(polynomials):
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=1, dim2=2).add_(a)
        product = p @ product if step else p
        if step < len(polynomials) - 1:
            gram = p @ gram @ p
    return product
