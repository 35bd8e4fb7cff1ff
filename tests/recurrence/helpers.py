"""Inputs of the recurrence, and what the loop in float64 makes of them."""

from collections.abc import Callable

import torch
from torch import Tensor

from lm.recurrence import reference

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "wide rows": lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
    "time first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "channels first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "every second number": lambda x: torch.stack([x, -x], dim=-1).flatten(-2)[..., ::2],
    "one row for all": lambda x: x[:1].expand(x.shape),
}
"""The same numbers, or the first row of them for all, otherwise arranged in memory."""
PARTS = {"linear_scan": 2, "mingru_scan": 2, "minlstm_scan": 3}

SELECTIVE = ("u", "delta", "A", "B", "C", "skip", "h0")
"""The arguments of the selective scan."""


def inputs_of(name: str, B: int, T: int, D: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Leaves: a and b, or the projection, and at last h0."""
    generator = torch.Generator().manual_seed(T * D)
    x = torch.randn(B, T, PARTS[name] * D, generator=generator).mul(2).to(dtype)
    h0 = torch.rand(B, D, generator=generator)
    if name == "linear_scan":
        a, b = x.chunk(2, dim=-1)
        return [leaf.requires_grad_() for leaf in (a.sigmoid(), b.clone(), h0)]
    return [x.requires_grad_(), h0.requires_grad_()]


def selective_inputs(B: int, T: int, D: int, N: int = 5, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Leaves, in the order of `SELECTIVE`. Some channels forget at once, others remember for hundreds of steps."""
    generator = torch.Generator().manual_seed(T * D)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    sequences = {name: normal(B, T, D) for name in ("u", "delta")} | {name: normal(B, T, N) for name in ("B", "C")}
    sequences["delta"] -= 3
    states = {"A": -(2 * normal(N, D)).exp(), "skip": normal(D), "h0": normal(B, N, D)}
    leaves = {name: x.to(dtype) for name, x in sequences.items()} | states
    return [leaves[name].requires_grad_() for name in SELECTIVE]


def random_weights(outputs: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    """Gradients for the outputs, the same for whatever types they have, exact in the given one."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(y.shape, generator=generator).to(dtype).to(y.dtype) for y in outputs]


def outputs_of(function: Callable, inputs: list[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """h, h_last, and the gradients of all inputs under random gradients of both."""
    outputs = function(*inputs)
    return [*outputs, *torch.autograd.grad(outputs, inputs, random_weights(outputs, dtype or inputs[0].dtype))]


def loop(name: str, inputs: list[Tensor]) -> list[Tensor]:
    """What the loop in float64 makes of the same numbers."""
    torch.set_num_threads(1)  # thousands of small operations are slow with more

    def fold(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        *x, h = inputs
        pieces = []  # short ones: the gradient of x[:, t] is as long as x
        for piece in zip(*(y.split(128, dim=1) for y in x), strict=True):
            out, h = getattr(reference, name)(*piece, h)
            pieces.append(out)
        return torch.cat(pieces, dim=1), h

    twins = [x.detach().double().requires_grad_() for x in inputs]
    return outputs_of(fold, twins, inputs[0].dtype)


def error(got: Tensor, want: Tensor) -> float:
    """The relative error, in the Euclidean norm; infinite if there is a NaN."""
    got, want = got.detach().double(), want.detach().double()
    wrong = (got - want).norm() / want.norm().clamp_min(1e-30)
    return wrong.item() if wrong == wrong else float("inf")


def assert_close(got: list[Tensor], want: list[Tensor], tolerance: float) -> None:
    assert [x.shape for x in got] == [x.shape for x in want]
    errors = [error(x, y) for x, y in zip(got, want, strict=True)]
    assert max(errors) <= tolerance, errors
