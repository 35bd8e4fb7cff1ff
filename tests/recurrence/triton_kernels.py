"""The Triton kernels against the loop in float64. `test_cuda.py` runs this file in a process of its own.

On a GPU as they are; elsewhere in Triton's interpreter (TRITON_INTERPRET=1), which takes milliseconds for every step,
so the sizes are small.
"""

import pytest
import torch
from torch import Tensor

from lm import recurrence
from lm.recurrence import cuda, portable, reference
from tests.recurrence.helpers import (
    LAYOUTS,
    PARTS,
    TOLERANCE,
    assert_close,
    error,
    inputs_of,
    loop,
    outputs_of,
    random_weights,
    selective_inputs,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CELLS = ["mingru_scan", "minlstm_scan"]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """The Triton kernels, with outputs that are NaN before they are written."""
    monkeypatch.setenv("LM_BACKEND", "triton")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    assert torch.zeros(1, device=DEVICE).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def force(monkeypatch, path: str) -> None:
    """`walk` over time in one piece, as with many channels, or in `chunks`, as with few."""
    monkeypatch.setattr(cuda, "multiprocessors", lambda device: {"walk": 0, "chunks": 1000}[path])
    monkeypatch.setattr(cuda, "CHUNK", 16)


@pytest.fixture(params=["walk", "chunks"])
def path(request, monkeypatch) -> str:
    force(monkeypatch, request.param)
    return request.param


def on_device(inputs: list[Tensor]) -> list[Tensor]:
    return [x.detach().to(DEVICE).requires_grad_() for x in inputs]


def results(name: str, inputs: list[Tensor]) -> list[Tensor]:
    """h, h_last and all gradients, on the CPU; the inputs may be there."""
    inputs = on_device(inputs)
    outputs = getattr(recurrence, name)(*inputs)
    weights = [w.to(DEVICE) for w in random_weights(outputs, inputs[0].dtype)]
    return [x.cpu() for x in (*outputs, *torch.autograd.grad(outputs, inputs, weights))]


def check(name: str, B: int, T: int, D: int, dtype: torch.dtype = torch.float32) -> None:
    inputs = inputs_of(name, B, T, D, dtype)
    got = results(name, inputs)
    assert [x.dtype for x in got] == [dtype, torch.float32, *(x.dtype for x in inputs)]
    assert_close(got, loop(name, inputs), TOLERANCE[dtype])


def chunks(B: int, T: int, D: int) -> int:
    return cuda.plan(B, T, D, cuda.multiprocessors(torch.device(DEVICE))).chunks


@pytest.mark.parametrize("path", ["walk"], indirect=True)
@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize(("B", "T", "D"), [(2, 1, 24), (2, 2, 130), (1, 63, 1)])
def test_sizes(path, name, B, T, D):
    check(name, B, T, D)
    assert chunks(B, T, D) == 1


@pytest.mark.parametrize("path", ["chunks"], indirect=True)
@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize(("B", "T", "D"), [pytest.param(2, 63, 1, marks=pytest.mark.slow), (1, 35, 40)])
def test_sizes_in_chunks(path, name, B, T, D):
    check(name, B, T, D)
    assert chunks(B, T, D) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("path", "name"), [("walk", "mingru_scan"), ("chunks", "linear_scan")], indirect=["path"])
def test_257_steps(path, name):
    check(name, 1, 257, 24)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
def test_half_types(name, dtype):
    check(name, 2, 17, 24, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["chunks"], indirect=True)
def test_bfloat16_in_chunks(path):
    check("minlstm_scan", 1, 35, 24, torch.bfloat16)


@pytest.mark.parametrize("name", PARTS)
def test_float64_is_served(name):
    inputs = [x.detach().double() for x in inputs_of(name, 2, 5, 3)]
    assert_close(results(name, inputs), loop(name, inputs), 1e-12)


@pytest.mark.parametrize(
    ("path", "name"),
    [("walk", "linear_scan"), ("walk", "minlstm_scan"), ("chunks", "mingru_scan")],
    indirect=["path"],
)
def test_no_h0(path, name):
    *x, h0 = inputs_of(name, 1, 33, 5)
    assert_close(results(name, x), loop(name, [*x, torch.zeros_like(h0)])[:-1], 1e-5)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_extreme_inputs(name, dtype):
    """Every pair or triple of huge and tiny logits: finite, and saturated as the formulas have it."""
    values = torch.tensor([-1e4, -88.0, -1e-6, 20.0, 1e4])
    columns = torch.cartesian_prod(*[values] * PARTS[name]).T  # (parts, D)
    x = columns.reshape(1, 1, -1).repeat(1, 2, 1).to(dtype)
    h0 = torch.rand(1, columns.shape[1])
    got = results(name, [x, h0])
    assert all(y.isfinite().all() for y in got)
    want, want_last = portable.scan_forward(portable.Kind(PARTS[name] - 1), (x.double(),), h0.double())
    assert_close(got[:2], [want, want_last], TOLERANCE[dtype])


@pytest.mark.parametrize("name", PARTS)
def test_nan_stays(path, name):
    """In every later state, across chunks of time too."""
    for part in range(PARTS[name]):
        *x, h0 = (y.detach() for y in inputs_of(name, 1, 35, 2))
        parts = x if name == "linear_scan" else x[0].chunk(PARTS[name], dim=-1)
        parts[part][0, 1, 0] = float("nan")
        h, h_last = getattr(recurrence, name)(*on_device(x), h0.to(DEVICE))
        assert h[0, :, 0].isfinite().tolist() == [True] + [False] * 34
        assert h[0, :, 1].isfinite().all() and h_last[0].isfinite().tolist() == [False, True]


def test_nan_in_a_stays_in_the_gradients(path):
    a, b, h0 = on_device(inputs_of("linear_scan", 1, 35, 2))
    with torch.no_grad():
        a[0, 33, 0] = float("nan")
    _, grad_b, grad_h0 = torch.autograd.grad(recurrence.linear_scan(a, b, h0)[0].sum(), [a, b, h0])
    assert grad_b[0, :, 0].isfinite().tolist() == [False] * 33 + [True, True]
    assert grad_b[0, :, 1].isfinite().all() and grad_h0[0].isfinite().tolist() == [False, True]


def test_selective_scan_is_served():
    """It has no kernels of its own yet."""
    inputs = on_device(selective_inputs(1, 34, 3))
    outputs = recurrence.selective_scan(*inputs)
    weights = [w.to(DEVICE) for w in random_weights(outputs, torch.float32)]
    got = [x.cpu() for x in (*outputs, *torch.autograd.grad(outputs, inputs, weights))]
    twins = [x.detach().cpu().double().requires_grad_() for x in inputs]
    assert_close(got, outputs_of(reference.selective_scan, twins, torch.float32), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["chunks"], indirect=True)
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        *(("mingru_scan", layout) for layout in LAYOUTS.values()),
        ("linear_scan", lambda x: x[:, :1].expand(x.shape)),
    ],
    ids=[*LAYOUTS, "one step for all"],
)
def test_layouts(path, name, layout):
    """Strides are the kernels' affair; the gradient of a sum has none."""
    *x, h0 = on_device(inputs_of(name, 2, 33, 8))
    got = getattr(recurrence, name)(*map(layout, x), h0)
    want = getattr(reference, name)(*map(layout, x), h0)
    assert_close(list(got), list(want), 1e-5)
    assert_close(*([*torch.autograd.grad(y[0].sum() + y[1].sum(), [*x, h0])] for y in (got, want)), 1e-5)


@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 5, 0)], ids=["no rows", "no channels"])
def test_empty(shape):
    x = torch.zeros(*shape[:2], 2 * shape[2], requires_grad=True, device=DEVICE)
    h, h_last = recurrence.mingru_scan(x)
    assert h.shape == shape and h_last.shape == (shape[0], shape[2])
    h.sum().backward()


@pytest.mark.slow
def test_the_state_is_wide():
    """bfloat16 has 8 digits: a state kept in it would stop at 256 when ones are added; the output does stop there."""
    ones = torch.ones(1, 300, 1, dtype=torch.bfloat16, device=DEVICE)
    h, h_last = recurrence.linear_scan(ones, ones)
    assert h_last.item() == 300 and h.dtype == torch.bfloat16
    assert error(h.float().cpu()[0, :, 0], torch.arange(1.0, 301.0)) < 4e-3
