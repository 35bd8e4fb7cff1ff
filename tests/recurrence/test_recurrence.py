"""The operations of the recurrence, with every backend, against the loop in float64; the choice of a backend."""

import functools
import importlib

import pytest
import torch
from torch import Tensor

from lm import recurrence
from lm.native.build import BuildError, Library
from lm.recurrence import cpu, portable, reference, selective
from tests.recurrence.helpers import LAYOUTS, PARTS, TOLERANCE, assert_close, error, inputs_of, loop, outputs_of

LENGTHS = [1, 2, 63, 257, 1000]
WIDTHS = [1, 3, 24, 130]
INF = float("inf")
pytestmark = pytest.mark.usefixtures("threads")


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


def projection_of(name: str, k: Tensor, c: Tensor) -> Tensor:
    """A projection (1, 1, ...) whose update gates have the logits k."""
    gates = [k] if name == "mingru_scan" else [-k, k]
    return torch.cat([*gates, c])[None, None]


@pytest.mark.parametrize("name", ["mingru_scan", "minlstm_scan"])
def test_the_share_of_the_past_has_all_its_digits(backend, name):
    """With h0 = 1 and a candidate of next to nothing h_1 is 1 - z, right to half a unit of its last place near 1, where
    errors would add up over thousands of steps, and to a few units where it is small."""
    k = torch.linspace(-20, 25, 4001)
    x = projection_of(name, k, torch.full_like(k, -80.0))
    h, _ = getattr(recurrence, name)(x, torch.ones(1, 4001))
    gates = [part.double() for part in x[0, 0].chunk(PARTS[name])[:-1]]
    odds = gates[0].exp() if name == "mingru_scan" else (1 + (-gates[0]).exp()) / (1 + (-gates[1]).exp())
    exact = 1 / (1 + odds)
    wrong = (h[0, 0].double() - exact).abs()
    assert wrong[k < -6].max() < 0.51 * 2**-24 + 2e-9
    rounded = backend == "portable" and name == "minlstm_scan"  # its k, up to 25, is a difference of rounded numbers
    assert (wrong / exact).max() < (2e-6 if rounded else 4e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_outputs_are_rounded_as_torch_does(backend, dtype):
    """h_1 = h0 for a = 1 and b = 0. Numbers of every size, those half-way between two of the type, and the largest."""
    numbers = (
        torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    )  # all of the type
    numbers = numbers[numbers.isfinite()].sort().values
    half_way = numbers[:-1] + (numbers[1:] - numbers[:-1]) / 2
    others = torch.tensor([65504.0, 65519.0, 65520.0, 65536.0, 1e-8, 2.0**-25, 3e38, INF, -INF])
    h0 = torch.cat([numbers, half_way, half_way.nextafter(torch.tensor(INF)), others])
    h0 = h0[(h0 == 0) | (h0.abs() >= torch.finfo(torch.float32).tiny)][None]
    a = torch.ones(1, 1, h0.shape[1], dtype=dtype)
    h, _ = recurrence.linear_scan(a, torch.zeros_like(a), h0)
    assert torch.equal(h[0], h0.to(dtype))
    nan = torch.tensor([[0x7FFFFFFF]], dtype=torch.int32).view(torch.float32)  # rounding its bits up would give -0
    h, _ = recurrence.linear_scan(a[..., :1], torch.zeros_like(a[..., :1]), nan)
    assert h.isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_inputs_of_half_types_are_read_exactly(backend, dtype):
    """h_1 = b for a = 0, with every b that the type has but NaN; bfloat16's smallest ones can be flushed to zero."""
    b = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    b = b[~b.isnan() & ((b == 0) | (b.float().abs() >= torch.finfo(torch.float32).tiny))][None, None]
    _, last = recurrence.linear_scan(torch.zeros_like(b), b)
    assert torch.equal(last, b[0].float()) and last.isinf().sum() == 2


@pytest.mark.parametrize("f, i, keep", [(-INF, 0, 0), (0, -INF, 1), (INF, 0, 2 / 3), (0, INF, 1 / 3), (-200, -300, 1)])
def test_minlstm_of_infinite_logits(backend, f, i, keep):
    h, _ = recurrence.minlstm_scan(torch.tensor([[[f, i, 1.5]]]), torch.full((1, 1), 7.0))
    assert h.item() == pytest.approx(keep * 7 + (1 - keep) * 2)


@functools.cache
def long_case(name: str) -> tuple[list[Tensor], list[Tensor]]:
    inputs = inputs_of(name, 1, 65_536, 3)
    with torch.no_grad():
        inputs[0][..., :3].sub_(4)  # minGRU remembers for some hundred steps
    return inputs, loop(name, inputs)


@pytest.mark.slow
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


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("T", [3, 1037])
def test_nan_and_infinity_stay(backend, threads, name, bad, T):
    """They reach every later state, across chunks of time as well, even where all memory fades within a few steps;
    other channels, and the steps before, stay finite."""
    threads(3)
    for part in range(PARTS[name]):
        if bad == float("inf") and part < PARTS[name] - 1:
            continue  # an infinite gate logit is a closed or open gate, and an infinite a a mistake
        *x, h0 = (y.detach() for y in inputs_of(name, 1, T, 260))  # so wide that threads cut time into chunks
        parts = x if name == "linear_scan" else x[0].chunk(PARTS[name], dim=-1)
        parts[part][0, 1, 0] = bad
        h, h_last = getattr(recurrence, name)(*x, h0)
        assert h[0, :, 0].isfinite().tolist() == [True] + [False] * (T - 1)
        assert h[0, :, 1:].isfinite().all() and h_last[0].isfinite().tolist() == [False] + [True] * 259


@pytest.mark.parametrize("T", [3, 1037])
def test_nan_in_a_stays_in_the_gradients(backend, threads, T):
    """The gradient of b_t is the sum over later steps of the products of a in between."""
    threads(3)
    a, b, h0 = inputs_of("linear_scan", 1, T, 260)
    with torch.no_grad():
        a[0, T - 2, 0] = float("nan")
    h, _ = recurrence.linear_scan(a, b, h0)
    _, grad_b, grad_h0 = torch.autograd.grad(h.sum(), [a, b, h0])
    assert grad_b[0, :, 0].isfinite().tolist() == [False] * (T - 2) + [True, True]
    assert grad_b[0, :, 1:].isfinite().all() and grad_h0[0].isfinite().tolist() == [False] + [True] * 259


@pytest.mark.parametrize("other", [torch.bfloat16, torch.float64])
def test_a_and_b_are_brought_to_their_common_type(backend, other):
    a, b, h0 = inputs_of("linear_scan", 2, 9, 4)
    with torch.no_grad():
        a, b = a.to(other).requires_grad_(), b.requires_grad_()
    wide = torch.promote_types(other, torch.float32)
    got = outputs_of(recurrence.linear_scan, [a, b, h0])
    assert [x.dtype for x in got] == [wide, wide, other, torch.float32, torch.float32]
    assert_close(got, loop("linear_scan", [a, b, h0]), TOLERANCE[torch.bfloat16] if other == torch.bfloat16 else 1e-6)


# ---------------------------------------------------------------- memory layouts


@pytest.mark.parametrize("name", ["mingru_scan", "minlstm_scan"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
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
    with pytest.raises(ValueError, match=f"^{name} needs h0 of shape"):
        function(*inputs[:-1], torch.zeros(2, 4))
    with pytest.raises(ValueError, match=f"^{name} cannot read"):
        function(*(x[:, :0] for x in inputs[:-1]))


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_rows_have_contiguous_channels(channels):
    x = torch.arange(10.0 * channels).view(2, channels, 5).transpose(1, 2)
    found = portable.rows(x)
    assert found.equal(x) and found.is_contiguous()


# ---------------------------------------------------------------- the choice of a backend


def test_without_a_compiler_the_portable_kernels_serve(monkeypatch, tmp_path):
    """With one warning, unless the native ones are asked for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv("LM_BACKEND", "auto")
    for module in (cpu, selective):
        monkeypatch.setattr(module, "library", Library(module.library.source, **module.library.functions))
    with pytest.warns(RuntimeWarning, match="no-such-compiler") as warned:
        check("mingru_scan", 2, 63, 24)
        check("minlstm_scan", 2, 63, 24)
    assert len(warned) == 1
    with pytest.warns(RuntimeWarning, match=r"selective\.c .*no-such-compiler"):
        assert recurrence.kernels(torch.zeros(1), selective) is portable
    monkeypatch.setenv("LM_BACKEND", "native")
    with pytest.raises(BuildError, match="no-such-compiler"):
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
    assert recurrence.kernels(torch.zeros(1), selective) is {"portable": portable, "native": selective}[backend]


class OnGpu:
    """What `kernels` looks at of a tensor on an NVIDIA GPU."""

    device = torch.device("cuda")
    dtype = torch.float32


def test_without_triton_a_gpu_is_served_by_the_portable_kernels(monkeypatch):
    def missing(name):
        raise ImportError("No module named 'triton' today")

    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.setenv("LM_BACKEND", "auto")
    with pytest.warns(RuntimeWarning, match="triton.*slower PyTorch implementation"):
        assert recurrence.kernels(OnGpu()) is portable
    for backend in ("triton", "native"):
        monkeypatch.setenv("LM_BACKEND", backend)
        with pytest.raises(ImportError, match="triton"):
            recurrence.kernels(OnGpu())
    monkeypatch.setenv("LM_BACKEND", "portable")
    assert recurrence.kernels(OnGpu()) is portable


@pytest.mark.parametrize("backend", ["auto", "native", "triton"])
def test_a_gpu_is_served_by_triton(monkeypatch, backend):
    monkeypatch.setattr(importlib, "import_module", lambda name: name)
    monkeypatch.setenv("LM_BACKEND", backend)
    assert recurrence.kernels(OnGpu()) == "lm.recurrence.cuda"
    assert (recurrence.kernels(torch.zeros(1)) == "lm.recurrence.cuda") == (backend == "triton")
