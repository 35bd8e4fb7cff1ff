"""Muon's orthogonalisation: the singular values of each update become nearly one.

K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). `torch.optim.Muon` exists, but
orthogonalises in bfloat16 and one matrix after another, which is slow on a CPU, and has no AdamW for the others.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from ctypes import c_float, c_int, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from lm.native.build import Library
from lm.native.choice import choose

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration, chosen by Jordan for speed: singular values end in about [0.7, 1.2]."""
LARGEST = 1024
"""Rows of the largest Gram matrix that is given to a single thread."""

library = Library(
    Path(__file__).with_name("muon.c"),
    gram_polynomial=(c_int, c_int, c_int, c_int, c_float * 3, c_void_p, c_void_p, c_int),
)


def orthogonalise(matrices: Sequence[Tensor], steps: int = 5) -> list[Tensor]:
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
        results |= zip(group, form([matrices[i] for i in group], steps), strict=True)
    return [results[i] for i in range(len(matrices))]


def newton_schulz(matrices: Sequence[Tensor], steps: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Iterate x <- a x + b (x x^T) x + c (x x^T)^2 x on matrices of one shape, each divided by its norm first."""
    a, b, c = COEFFICIENTS
    x = torch.stack(list(matrices)).to(dtype)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x  # the iteration commutes with this, and x x^T is then the smaller of the two products
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def newton_schulz_gram(matrices: Sequence[Tensor], steps: int) -> list[Tensor]:
    """The same in float32 with x x^T alone, whose result is multiplied by x at the end: half the work if N >= 3 M.

    The matrices need only be equal in their smaller side; those with M > N are multiplied from the other side. In
    bfloat16 this form fails: the errors of x x^T grow twelvefold in each step. In float32 results are off by 1e-5, or
    by a few thousandths for a matrix of low rank.
    """
    matrices = [matrix.float() for matrix in matrices]
    gram = torch.stack([x.mT @ x if x.shape[0] > x.shape[1] else x @ x.mT for x in matrices])
    norm = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].sqrt() + 1e-7
    factors = gram_polynomial(gram / norm.square(), steps) / norm
    return [x @ f if x.shape[0] > x.shape[1] else f @ x for x, f in zip(matrices, factors, strict=True)]


def gram_polynomial(gram: Tensor, steps: int) -> Tensor:
    """The matrix (count, M, M) by which `steps` steps multiply each x; gram (count, M, M) is x x^T.

    A step maps x to p x with p = a + b g + c g^2, hence g = x x^T to p g p.
    """
    count, n, _ = gram.shape
    native = n <= LARGEST and steps > 0 and choose(gram, portable=torch, native=sys.modules[__name__]) is not torch
    if not native or count < torch.get_num_threads():
        return gram_polynomial_portable(gram, steps)
    gram, result = gram.contiguous(), torch.empty_like(gram, memory_format=torch.contiguous_format)
    threads = min(count, torch.get_num_threads())
    abc = (c_float * 3)(*COEFFICIENTS)
    if library().gram_polynomial(count, n, steps, abc, gram.data_ptr(), result.data_ptr(), threads):
        raise MemoryError("no memory for Muon's products")
    return result


def gram_polynomial_portable(gram: Tensor, steps: int) -> Tensor:
    """The same with torch's products."""
    a, b, c = COEFFICIENTS
    product = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device).expand_as(gram)
    for step in range(steps):
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=1, dim2=2).add_(a)
        product = p @ product if step else p
        if step < steps - 1:
            gram = p @ gram @ p
    return product
