"""Every backend of the recurrence against the loop in float64, and the building of the native one."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lm import recurrence
from lm.native import build as native
from lm.recurrence import cpu, portable, reference
from tests.commands import ROOT

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
LENGTHS = [1, 2, 63, 257, 1000]
WIDTHS = [1, 3, 24, 130]
PARTS = {"linear_scan": 2, "mingru_scan": 2, "minlstm_scan": 3}
pytestmark = pytest.mark.usefixtures("threads")


def inputs_of(name: str, B: int, T: int, D: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Leaves: a and b, or the projection, and at last h0."""
    generator = torch.Generator().manual_seed(T * D)
    x = torch.randn(B, T, PARTS[name] * D, generator=generator).mul(2).to(dtype)
    h0 = torch.rand(B, D, generator=generator)
    if name == "linear_scan":
        a, b = x.chunk(2, dim=-1)
        return [leaf.requires_grad_() for leaf in (a.sigmoid(), b.clone(), h0)]
    return [x.requires_grad_(), h0.requires_grad_()]


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


def check(name: str, B: int, T: int, D: int, dtype: torch.dtype = torch.float32) -> None:
    inputs = inputs_of(name, B, T, D, dtype)
    got = outputs_of(getattr(recurrence, name), inputs)
    assert [x.dtype for x in got] == [dtype, torch.float32, *(x.dtype for x in inputs)]
    assert_close(got, loop(name, inputs), TOLERANCE[dtype])


# ---------------------------------------------------------------- values and gradients


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("T", LENGTHS)
def test_lengths(backend, name, T):
    check(name, 2, T, 24)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("D", WIDTHS)
def test_widths(backend, name, D):
    check(name, 3, 63, D)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(backend, name, dtype):
    check(name, 2, 257, 130, dtype)


@pytest.mark.parametrize("name", PARTS)
def test_many_pieces(backend, name, threads):
    """Channels in several blocks and time in several chunks, neither dividing evenly."""
    threads(3)
    check(name, 1, 1037, 1030)


@pytest.mark.parametrize("name", PARTS)
def test_no_h0(backend, name):
    inputs = inputs_of(name, 2, 63, 24)[:-1]
    zero = torch.zeros(2, 24, requires_grad=True)
    with_zero = outputs_of(getattr(recurrence, name), [*inputs, zero])[:-1]
    assert_close(outputs_of(getattr(recurrence, name), inputs), with_zero, 0.0)


@functools.cache
def long_case(name: str) -> tuple[list[Tensor], list[Tensor]]:
    inputs = inputs_of(name, 1, 65_536, 3)
    with torch.no_grad():
        inputs[0][..., :3].sub_(4)  # minGRU remembers for some hundred steps
    return inputs, loop(name, inputs)


@pytest.mark.parametrize("name", ["mingru_scan", "minlstm_scan"])
def test_65536_steps(backend, name, threads):
    inputs, want = long_case(name)
    threads(3)
    assert_close(outputs_of(getattr(recurrence, name), inputs), want, 1e-5)


def test_nothing_is_forgotten(backend, threads):
    """With a = 1 and whole numbers every sum is exact, so chunks must pass the state on without loss."""
    threads(3)
    a = torch.ones(1, 65_536, 5)
    b = torch.randint(-3, 4, a.shape).float().requires_grad_()
    h0 = torch.arange(5.0)[None].requires_grad_()
    h, h_last = recurrence.linear_scan(a, b, h0)
    assert torch.equal(h, h0[:, None] + b.cumsum(dim=1))
    grad_b, grad_h0 = torch.autograd.grad([h, h_last], [b, h0], [torch.ones_like(h), torch.ones_like(h_last)])
    assert torch.equal(grad_b[0, :, 0], torch.arange(65_537.0, 1, -1))
    assert (grad_h0 == 65_537).all()


@pytest.mark.parametrize("name", ["mingru", "minlstm"])
def test_log_space_oracle(backend, name):
    x, h0 = inputs_of(f"{name}_scan", 2, 40, 24)
    h, _ = getattr(recurrence, f"{name}_scan")(x, h0)
    assert error(h, getattr(reference, f"{name}_log_space")(x.double(), h0.double())) <= 1e-5


@pytest.mark.parametrize("name", ["mingru_scan", "minlstm_scan"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_extreme_inputs(backend, name, dtype):
    """Every pair or triple of huge, tiny and zero logits: finite, and saturated as the formulas have it."""
    values = torch.tensor([-1e4, -120.0, -88.0, -20.0, -1e-6, 0.0, 1e-6, 20.0, 88.0, 120.0, 1e4])
    columns = torch.cartesian_prod(*[values] * PARTS[name]).T  # (parts, D)
    x = columns.reshape(1, 1, -1).repeat(1, 5, 1).to(dtype).requires_grad_()
    h0 = torch.rand(1, columns.shape[1]).requires_grad_()
    got = outputs_of(getattr(recurrence, name), [x, h0])
    assert all(y.isfinite().all() for y in got)
    want = outputs_of(getattr(recurrence, name), [x.detach().double().requires_grad_(), h0])
    assert_close(got[:2], want[:2], TOLERANCE[dtype])


def test_nan_is_not_hidden(backend):
    for name in ("mingru_scan", "minlstm_scan"):
        for part in range(PARTS[name]):
            x = torch.zeros(1, 3, PARTS[name])
            x[0, 1, part] = float("nan")
            h, h_last = getattr(recurrence, name)(x)
            assert h[0, :, 0].isnan().tolist() == [False, True, True] and h_last.isnan().all()


# ---------------------------------------------------------------- memory layouts


@pytest.mark.parametrize("name", ["mingru_scan", "minlstm_scan"])
@pytest.mark.parametrize(
    "layout",
    [
        lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x[:1].expand(x.shape),
    ],
    ids=["wide rows", "time first", "channels first", "one row for all"],
)
def test_projection_layouts(backend, name, layout):
    x, h0 = inputs_of(name, 3, 63, 24)
    function = getattr(recurrence, name)
    got = outputs_of(lambda x, h0: function(layout(x), h0), [x, h0])
    want = outputs_of(lambda x, h0: function(layout(x).contiguous(), h0), [x, h0])
    assert_close(got, want, 1e-6)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize(
    "loss",
    [
        lambda h, last: h.sum(),
        lambda h, last: last.sum(),
        lambda h, last: h.mean(dim=1).square().sum(),
        lambda h, last: h[:, -1].sum() + last.mean(),
    ],
    ids=["sum of h", "sum of h_last", "mean over time", "last row"],
)
def test_expanded_gradients(backend, name, loss):
    inputs = inputs_of(name, 3, 63, 24)
    got = torch.autograd.grad(loss(*getattr(recurrence, name)(*inputs)), inputs)
    twins = [x.detach().double().requires_grad_() for x in inputs]
    want = torch.autograd.grad(loss(*getattr(reference, name)(*twins)), twins)
    assert_close(list(got), list(want), 1e-5)


@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 5, 0)], ids=["no rows", "no channels"])
def test_empty(backend, shape):
    h, h_last = recurrence.mingru_scan(torch.zeros(*shape[:2], 2 * shape[2], requires_grad=True))
    assert h.shape == shape and h_last.shape == (shape[0], shape[2])
    h.sum().backward()


# ---------------------------------------------------------------- torch's own opinion


@pytest.mark.parametrize("name", PARTS)
def test_gradcheck(name):
    inputs = [x.detach().double().requires_grad_() for x in inputs_of(name, 2, 7, 3)]
    assert torch.autograd.gradcheck(getattr(recurrence, name), inputs)


def registered_calls() -> dict[str, tuple]:
    """Every registered operation with arguments for it."""
    calls: dict[str, tuple] = {}
    for name in PARTS:
        *x, h0 = inputs_of(name, 2, 5, 3)
        calls[name] = (*x, h0)
        kept, h = [x[0].detach()], torch.rand(2, 5, 3)
        calls[f"{name}_backward"] = (*kept, h, h0.detach(), torch.rand(2, 5, 3), torch.rand(2, 3))
    return calls


@pytest.mark.parametrize("name", registered_calls())
def test_opcheck(backend, name):
    torch.library.opcheck(getattr(torch.ops.lm, name).default, registered_calls()[name])


@pytest.mark.parametrize("name", PARTS)
def test_compile_sees_one_operation(backend, name):
    inputs = inputs_of(name, 2, 5, 4)
    function = getattr(recurrence, name)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_close(outputs_of(compiled, inputs), outputs_of(function, inputs), 1e-6)


@pytest.mark.parametrize("name", PARTS)
def test_wrong_shapes(name):
    function, inputs = getattr(recurrence, name), inputs_of(name, 2, 5, 3)
    with pytest.raises(ValueError, match="h0 of shape"):
        function(*inputs[:-1], torch.zeros(2, 4))
    with pytest.raises(ValueError, match="cannot read"):
        function(*(x[:, :0] for x in inputs[:-1]))


# ---------------------------------------------------------------- choosing and building a backend


@pytest.fixture
def unbuilt(monkeypatch, tmp_path):
    """As in a new process with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LM_BACKEND", "auto")
    for cached in (cpu._load, recurrence._warn_once):
        cached.cache_clear()
    yield monkeypatch
    for cached in (cpu._load, recurrence._warn_once):
        cached.cache_clear()


def no_compiler(monkeypatch, folder):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(folder))


def missing_compiler(monkeypatch, folder):
    monkeypatch.setenv("CC", str(folder / "no-such-compiler"))


def failing_compiler(monkeypatch, folder):
    script = folder / "cc"
    script.write_text("#!/bin/sh\n[ $1 = --version ] || { echo out of ideas >&2; exit 1; }\n")
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [(no_compiler, "no C compiler"), (missing_compiler, "no-such-compiler"), (failing_compiler, "out of ideas")],
)
def test_without_a_build_the_portable_path_serves(unbuilt, tmp_path, break_it, reason):
    break_it(unbuilt, tmp_path)
    with pytest.warns(RuntimeWarning, match=reason) as warned:
        check("mingru_scan", 2, 63, 24)
        check("minlstm_scan", 2, 63, 24)
    assert len(warned) == 1
    unbuilt.setenv("LM_BACKEND", "native")
    with pytest.raises(native.BuildError, match=reason):
        recurrence.mingru_scan(torch.zeros(1, 1, 2))


def test_unknown_backend(monkeypatch):
    monkeypatch.setenv("LM_BACKEND", "fast")
    with pytest.raises(ValueError, match="LM_BACKEND is 'fast'; it can be auto, portable"):
        recurrence.mingru_scan(torch.zeros(1, 1, 2))


def test_backend_of_a_tensor(backend):
    expected = {"portable": portable, "native": cpu}[backend]
    assert all(recurrence.kernels(torch.zeros(1, dtype=dtype)) is expected for dtype in TOLERANCE)
    assert recurrence.kernels(torch.zeros(1, dtype=torch.float64)) is portable
    assert recurrence.kernels(torch.zeros(1, device="meta")) is portable


def test_unwritable_cache(compiler, unbuilt, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("where the folder should be")
    unbuilt.setenv("XDG_CACHE_HOME", str(blocked))
    unbuilt.setenv("LM_BACKEND", "native")
    check("mingru_scan", 2, 63, 24)


def test_processes_build_at_once(compiler, tmp_path):
    """Two processes with one empty cache: both come out with right values, and one library is left."""
    code = "import torch; from lm import recurrence; print(recurrence.mingru_scan(torch.zeros(1, 2, 2))[0].tolist())"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "LM_BACKEND": "native"}
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in started] == ["[[[0.25], [0.375]]]"] * 2
    assert [path.suffix for path in (tmp_path / "char-lm").iterdir()] == [".so"]


# ---------------------------------------------------------------- memory


def test_memory_is_used_again_once_nothing_refers_to_it(compiler):
    pool, shape = cpu.Pool(limit=1 << 20), torch.Size((4, 1024))
    first = pool.empty(torch.zeros(1), shape)
    address, row = first.data_ptr(), first[0]
    del first
    assert pool.empty(torch.zeros(1), shape).data_ptr() != address, "a view still needs it"
    del row
    addresses = {pool.empty(torch.zeros(1), shape).data_ptr() for _ in range(8)}
    assert address in addresses and len(addresses) <= 2


def test_idle_memory_is_bounded(compiler):
    pool = cpu.Pool(limit=1 << 20)
    kept = [pool.empty(torch.zeros(1), torch.Size((n, 1024))) for n in range(1, 100)]
    assert not pool.idle
    del kept
    assert 0 < sum(block.nbytes for block in pool.idle) <= 1 << 20


def test_memory_saved_for_backward_is_not_used_again(compiler, monkeypatch):
    """Two scans larger than LARGE, alive at once: each has its own outputs, and gradients."""
    monkeypatch.setattr(cpu, "LARGE", 1)
    projections = [torch.randn(2, 64, 48, requires_grad=True) for _ in range(2)]
    wanted = [torch.autograd.grad(reference.mingru_scan(p)[0].square().sum(), p)[0] for p in projections]
    scans = [recurrence.mingru_scan(p)[0].square().sum() for p in projections]
    for scan, projection, want in zip(scans, projections, wanted, strict=True):
        torch.testing.assert_close(torch.autograd.grad(scan, projection)[0], want, rtol=1e-4, atol=1e-5)
