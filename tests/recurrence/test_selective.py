"""The selective scan of every backend against the loop in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lm import recurrence
from lm.recurrence import portable, reference
from tests.recurrence.helpers import LAYOUTS, SELECTIVE, TOLERANCE, assert_close, outputs_of, selective_inputs

LENGTHS = [1, 2, 63, 257, 1000]
pytestmark = pytest.mark.usefixtures("threads")


def loop(inputs: list[Tensor]) -> list[Tensor]:
    """What the loop in float64 makes of the same numbers."""
    torch.set_num_threads(1)

    def fold(u, delta, A, B, C, skip, h):
        pieces = []  # short ones: the gradient of x[:, t] is as long as x
        for piece in zip(*(x.split(64, dim=1) for x in (u, delta, B, C)), strict=True):
            u_k, delta_k, B_k, C_k = piece
            y, h = reference.selective_scan(u_k, delta_k, A, B_k, C_k, skip, h)
            pieces.append(y)
        return torch.cat(pieces, dim=1), h

    twins = [x.detach().double().requires_grad_() for x in inputs]
    return outputs_of(fold, twins, inputs[0].dtype)


def check(inputs: list[Tensor]) -> None:
    dtype = inputs[0].dtype
    got = outputs_of(recurrence.selective_scan, inputs)
    assert [x.dtype for x in got] == [dtype, torch.float32, *(x.dtype for x in inputs)]
    assert_close(got, loop(inputs), TOLERANCE[dtype])


# ---------------------------------------------------------------- values and gradients


@pytest.mark.parametrize("T", LENGTHS)
def test_lengths(backend, T):
    check(selective_inputs(2, T, 24))


@pytest.mark.parametrize("D, N", [(1, 1), (3, 16), (130, 2), (200, 16)])
def test_widths(backend, D, N):
    check(selective_inputs(3, 70, D, N))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(backend, dtype):
    check(selective_inputs(2, 257, 70, dtype=dtype))


def test_wide_blocks(compiler):
    """More batch rows than pieces are wanted: blocks of channels at their widest, the last one narrower."""
    check(selective_inputs(33, 34, 70, 2))


def test_no_h0(backend):
    *inputs, _ = selective_inputs(2, 63, 24)
    zero = torch.zeros(2, 5, 24, requires_grad=True)
    with_zero = outputs_of(recurrence.selective_scan, [*inputs, zero])[:-1]
    assert_close(outputs_of(recurrence.selective_scan, inputs), with_zero, 0.0)
    assert_close(outputs_of(reference.selective_scan, inputs), with_zero, 1e-5)


@pytest.mark.parametrize("which", [0, 1], ids=["y", "h_last"])
def test_gradients_of_one_output_alone(backend, which):
    inputs = selective_inputs(2, 63, 24)
    twins = [x.detach().double().requires_grad_() for x in inputs]
    got = torch.autograd.grad(recurrence.selective_scan(*inputs)[which].sum(), inputs, materialize_grads=True)
    want = torch.autograd.grad(
        reference.selective_scan(*twins)[which].sum(), twins, allow_unused=True, materialize_grads=True
    )
    assert_close(list(got), list(want), 1e-5)


@pytest.mark.parametrize("cut", [1, 31, 32, 40])
def test_splitting_a_sequence_changes_nothing(backend, cut):
    def split(u, delta, A, B, C, skip, h):
        ys = []
        for part in (slice(cut), slice(cut, None)):
            y, h = recurrence.selective_scan(u[:, part], delta[:, part], A, B[:, part], C[:, part], skip, h)
            ys.append(y)
        return torch.cat(ys, dim=1), h

    inputs = selective_inputs(2, 70, 24)
    assert_close(outputs_of(split, inputs), outputs_of(recurrence.selective_scan, inputs), 1e-6)


@pytest.mark.parametrize("D", [30, 300])  # too small a call for a second thread, and large enough
def test_number_of_threads_changes_no_bit(backend, threads, D):
    inputs = selective_inputs(4, 130, D)
    one, three = (threads(n) or outputs_of(recurrence.selective_scan, inputs) for n in (1, 3))
    if backend == "native":
        assert all(torch.equal(x, y) for x, y in zip(one, three, strict=True))
    assert_close(three, one, 1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_extreme_inputs(backend, dtype):
    """Step sizes from nothing to huge, and inputs of zero: finite, and saturated as the formulas have it."""
    values = torch.tensor([-1e4, -120.0, -88.0, -20.0, -1e-6, 0.0, 1e-6, 20.0, 88.0, 120.0, 1e4])
    delta, u = torch.cartesian_prod(values, torch.tensor([-0.03, 0.0, 0.03])).T[:, None, None]  # (1, 1, D) each
    *_, A, B, C, skip, h0 = selective_inputs(1, 5, delta.shape[-1], dtype=dtype)
    u, delta = (x.repeat(1, 5, 1).to(dtype).requires_grad_() for x in (u, delta))
    inputs = [u, delta, A, B, C, skip, h0]
    got = outputs_of(recurrence.selective_scan, inputs)
    assert all(x.isfinite().all() for x in got)
    assert_close(
        got[:2],
        outputs_of(reference.selective_scan, [x.detach().double().requires_grad_() for x in inputs])[:2],
        TOLERANCE[dtype],
    )


def test_softplus_keeps_its_digits(backend):
    """h_1 = dt u B is the step size itself, and its gradient sigmoid(delta)."""
    delta = torch.linspace(-30, 30, 2001)[None, None].requires_grad_()
    one = torch.ones(1, 1, 1)
    _, h = recurrence.selective_scan(torch.ones_like(delta), delta, -torch.ones(1, 2001), one, one, torch.ones(2001))
    (slope,) = torch.autograd.grad(h.sum(), delta)
    exact = delta.detach().double()
    for got, want in ((h, torch.log1p(exact.exp())), (slope, 1 / (1 + (-exact).exp()))):
        assert ((got - want) / want).abs().max() <= 5e-7


def test_nan_stays(backend):
    """In u and delta: in the states of its channel, and all later outputs of that channel."""
    for place in (0, 1):
        inputs = [x.detach() for x in selective_inputs(1, 70, 4)]
        inputs[place][0, 1, 2] = float("nan")
        y, h_last = recurrence.selective_scan(*inputs)
        assert y[0, :, 2].isnan().tolist() == [False] + [True] * 69
        assert y[0, :, :2].isfinite().all() and h_last.isnan().any(1).tolist() == [[False, False, True, False]]


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(backend, layout):
    def scan(relay: Callable[[Tensor], Tensor], u, delta, A, B, C, skip, h0):
        u, delta, B, C, h0 = map(relay, (u, delta, B, C, h0))
        return recurrence.selective_scan(u, delta, A.T.contiguous().T, B, C, skip, h0)

    inputs = selective_inputs(3, 63, 24)
    got = outputs_of(lambda *x: scan(layout, *x), inputs)
    assert_close(got, outputs_of(lambda *x: scan(lambda y: layout(y).contiguous(), *x), inputs), 1e-6)


@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 5, 0)], ids=["no rows", "no channels"])
def test_empty(backend, shape):
    inputs = selective_inputs(*shape)
    y, h_last = recurrence.selective_scan(*inputs)
    assert y.shape == shape and h_last.shape == inputs[-1].shape
    y.sum().backward()
    assert all(x.grad is None or not x.grad.any() for x in inputs)


# ---------------------------------------------------------------- torch's own opinion


@pytest.mark.parametrize("T", [3, 35])
def test_gradcheck(T):
    inputs = [x.detach().double().requires_grad_() for x in selective_inputs(1, T, 2, 2)]
    assert torch.autograd.gradcheck(recurrence.selective_scan, inputs)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("T", [5, 33])
def test_opcheck(backend, T, backwards):
    inputs = selective_inputs(2, T, 3)
    if not backwards:
        torch.library.opcheck(torch.ops.lm.selective_scan.default, tuple(inputs))
        torch.library.opcheck(torch.ops.lm.selective_scan.default, (*inputs[:-1], None))
        return
    *kept, h0 = (x.detach() for x in inputs)
    starts = torch.rand(portable.starts_shape(kept[0], kept[2]))
    for grad_last in (torch.rand_like(h0), None):
        arguments = (kept, starts, torch.rand_like(kept[0]), grad_last)
        torch.library.opcheck(torch.ops.lm.selective_scan_backward.default, arguments)


def test_compile_sees_one_operation(backend):
    inputs = selective_inputs(2, 5, 4)
    compiled = torch.compile(recurrence.selective_scan, fullgraph=True, backend="aot_eager")
    assert_close(outputs_of(compiled, inputs), outputs_of(recurrence.selective_scan, inputs), 1e-6)


@pytest.mark.parametrize("name", SELECTIVE)
def test_wrong_shapes_are_named(name):
    inputs = dict(zip(SELECTIVE, selective_inputs(2, 5, 3), strict=True))
    inputs[name] = inputs[name][:, :0] if inputs[name].dim() == 3 else inputs[name][..., :0]
    with pytest.raises(ValueError, match=rf"\b{name} of shape"):
        recurrence.selective_scan(**inputs)


@pytest.mark.parametrize("name", ["delta", "B", "C"])
def test_types_are_not_mixed(name):
    inputs = dict(zip(SELECTIVE, selective_inputs(2, 5, 3), strict=True))
    with pytest.raises(ValueError, match=f"needs {name} in u's type"):
        recurrence.selective_scan(**inputs | {name: inputs[name].bfloat16()})
