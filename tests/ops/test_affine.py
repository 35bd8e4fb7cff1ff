"""Linear maps and the MLP, native and as PyTorch computes them, against their formulas in float64."""

import pytest
import torch
from torch import Tensor, nn

from lm import ops
from lm.native import choice
from lm.native.build import BuildError, Library
from lm.ops import affine
from tests.recurrence.helpers import LAYOUTS, assert_close, outputs_of

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
every_type = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
SIZES = [(1, 16, 32, 32), (3, 37, 64, 96), (1, 131, 32, 64), (5, 211, 32, 64), (2, 400, 288, 512)]
"""(B, T, inputs, outputs): less than a block of rows, odd numbers of rows, several parts, long and short rounds."""
pytestmark = pytest.mark.usefixtures("threads")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + seed)).to(dtype).requires_grad_()


def under(dtype: torch.dtype, function):
    """The function in an autocast to a type, with which weights in float32 read inputs of this type."""

    def call(*inputs: Tensor) -> tuple[Tensor]:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return (function(*inputs),)

    return call


def formula(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor]:
    y = x @ weight.T
    return (y if bias is None else y + bias,)


def mlp_formula(x: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor]:
    return ((x @ up.T).clamp_min(0).square() @ down.T,)


def check(function, formula, inputs: list[Tensor], dtype: torch.dtype) -> None:
    """Values, types and gradients."""
    got = outputs_of(under(dtype, function), inputs, dtype)
    assert [y.dtype for y in got] == [dtype, *(x.dtype for x in inputs)]
    rounded = [x.detach().to(dtype).double().requires_grad_() for x in inputs]
    assert_close(got, outputs_of(formula, rounded, dtype), TOLERANCE[dtype])


def is_native(y: Tensor) -> bool:
    return type(y.grad_fn).__name__ in ("_LinearBackward", "_MLPBackward")


def needs(dtype: torch.dtype) -> None:
    if not affine.columns(dtype):
        pytest.skip("this processor has no instruction for it, or a faster one")


@every_type
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_linear(backend, dtype, size, bias):
    B, T, K, M = size
    inputs = [normal(B, T, K, dtype=dtype), normal(M, K), *([normal(M)] if bias else [])]
    check(ops.linear, formula, inputs, dtype)


@every_type
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_squared_relu_mlp(backend, dtype, size):
    B, T, K, M = size
    check(ops.squared_relu_mlp, mlp_formula, [normal(B, T, K, dtype=dtype), normal(M, K), normal(K, M)], dtype)


@every_type
@pytest.mark.parametrize("outputs", [2, 7, 66, 68])
def test_any_number_of_outputs(backend, dtype, outputs):
    """As a vocabulary has. An odd one of bfloat16, and one with a bias, is left to PyTorch."""
    x, weight = normal(3, 37, 64, dtype=dtype), normal(outputs, 64)
    check(ops.linear, formula, [x, weight], dtype)
    check(ops.linear, formula, [x, weight, normal(outputs)], dtype)
    (y,) = under(dtype, ops.linear)(x, weight)
    assert is_native(y) == (backend == "native" and affine.columns(dtype) > 0 and outputs % 2 == 0)


def test_linear_by_hand(backend):
    """Each row of x has a single 1."""
    x, weight, bias = torch.zeros(1, 16, 32), torch.arange(1024.0).view(32, 32), torch.arange(32.0)
    x[0, torch.arange(16), torch.arange(16)] = 1
    x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()
    y = ops.linear(x, weight, bias)
    assert y[0, 3, 5] == weight[5, 3] + 5 and y[0, 15, 31] == weight[31, 15] + 31
    grads = torch.autograd.grad(y[0, 2:4].sum(), [x, weight, bias])
    assert torch.equal(grads[0][0, 3], weight.sum(0)) and not grads[0][0, 4:].any()
    assert grads[1][:, 2:4].eq(1).all() and grads[1].sum() == 64 and torch.equal(grads[2], torch.full((32,), 2.0))


def test_numbers_that_are_not_finite_stay_in_their_row(backend):
    x, up, down = normal(2, 20, 32).detach(), normal(64, 32), normal(32, 64)
    x[0, 3, 5], x[1, 19, 0] = float("nan"), float("inf")
    x.requires_grad_()
    for y in (ops.linear(x, up), ops.squared_relu_mlp(x, up, down)):
        finite = y.isfinite().all(-1)
        assert not finite[0, 3] and not finite[1, 19] and finite.sum() == 38


@every_type
def test_weights_under_autocast_read_float32(backend, dtype):
    """And round it as PyTorch does."""
    x, weight = normal(2, 20, 32), normal(64, 32)
    (y,), (want,) = under(dtype, ops.linear)(x, weight), under(dtype, nn.functional.linear)(x, weight)
    assert y.dtype == want.dtype == dtype
    assert_close([y], [want.double()], TOLERANCE[dtype])
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.dtype == torch.float32


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(backend, layout):
    x, weight, bias = normal(3, 20, 32), normal(64, 32), normal(64)
    strided = torch.stack([weight, -weight], dim=-1)[..., 0]
    got = outputs_of(lambda x, w, b: (ops.linear(layout(x), w, b),), [x, strided, bias])
    want = outputs_of(lambda x, w, b: (nn.functional.linear(layout(x), w, b),), [x, strided, bias])
    assert_close(got, want, 1e-5)
    expanded = torch.autograd.grad(ops.linear(x, weight).mean(1).sum(), [x, weight])
    assert_close(
        list(expanded), list(torch.autograd.grad(nn.functional.linear(x, weight).mean(1).sum(), [x, weight])), 1e-5
    )


@every_type
def test_the_number_of_threads_changes_nothing(compiler, threads, monkeypatch, dtype):
    """Nor does a second run, nor what else is in the batch."""
    needs(dtype)
    monkeypatch.setattr(choice, "SMALL", 1)
    x, up, down = normal(7, 211, 32, dtype=dtype), normal(64, 32), normal(32, 64)
    results = []
    for number in (1, 1, 2, 3, 5):
        threads(number)
        results.append(outputs_of(under(dtype, ops.squared_relu_mlp), [x, up, down], dtype))
        results[-1] += outputs_of(under(dtype, ops.linear), [x, up, normal(64)], dtype)
    for other in results[1:]:
        assert all(torch.equal(y, z) for y, z in zip(results[0], other, strict=True))
    (alone,) = under(dtype, ops.squared_relu_mlp)(x[3:4], up, down)
    assert torch.equal(alone[0], results[0][0][3])


def test_what_the_native_kernels_do_not_compute(compiler, monkeypatch):
    """Few steps, however many sequences; widths that are no multiple; large matrices; other types and tensors."""
    needs(torch.float32)
    weight = normal(64, 32)
    for largest, native in ((2048, True), (2047, False)):
        monkeypatch.setattr(affine, "LARGEST", largest)
        assert is_native(ops.linear(normal(1, 16, 32), weight)) == native
    monkeypatch.undo()
    for shape, native in (((1000, 15, 32), False), ((1, 16, 32), True), ((1000, 32), False), ((1, 2, 16, 32), False)):
        assert is_native(ops.linear(normal(*shape), weight)) == native
    assert not is_native(ops.linear(normal(1, 16, 31), normal(64, 31)))
    assert not is_native(ops.linear(normal(1, 16, 32).double(), weight.double()))
    assert is_native(ops.squared_relu_mlp(normal(1, 16, 32), weight, normal(32, 64)))
    assert not is_native(ops.squared_relu_mlp(normal(1, 16, 32), normal(65, 32), normal(32, 65)))
    with torch.autocast("cpu", torch.float16):
        assert not is_native(ops.linear(normal(1, 16, 32), weight))
    with pytest.raises(RuntimeError, match="dtype"):  # without autocast
        ops.linear(normal(1, 16, 32, dtype=torch.bfloat16), weight)

    class Other(Tensor):
        pass

    assert type(ops.linear(normal(1, 16, 32).as_subclass(Other), weight)) is Other


def test_differentiated_once(compiler):
    needs(torch.float32)
    x = normal(1, 16, 32)
    (grad,) = torch.autograd.grad(ops.linear(x, normal(64, 32)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_without_gradients_and_functional(backend):
    x, weight, bias = normal(2, 16, 32), normal(64, 32), normal(64)
    want = ops.linear(x, weight, bias)
    with torch.no_grad():
        y = ops.linear(x, weight, bias)
        assert torch.equal(y, want) and not y.requires_grad
    with torch.inference_mode():
        assert torch.equal(ops.linear(x, weight, bias), want)
    frozen = ops.linear(x, weight.detach(), bias.detach())
    assert_close(list(torch.autograd.grad(frozen.sum(), x)), [weight.sum(0).expand_as(x)], 1e-5)
    got = torch.func.grad(lambda w: ops.linear(x.detach(), w, bias.detach()).sum())(weight.detach())
    assert_close([got], list(torch.autograd.grad(want.sum(), weight)), 1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")  # torch's compiler warns of torch
def test_compile_sees_the_operations_of_torch(backend, monkeypatch):
    x, up, down = normal(2, 16, 32), normal(64, 32), normal(32, 64)
    want = outputs_of(lambda *inputs: (ops.squared_relu_mlp(*inputs),), [x, up, down])

    def fail(*arguments):
        raise AssertionError("a native kernel was called")

    monkeypatch.setattr(affine, "linear", fail)
    monkeypatch.setattr(affine, "squared_relu_mlp", fail)
    compiled = torch.compile(ops.squared_relu_mlp, fullgraph=True, backend="aot_eager")
    assert_close(outputs_of(lambda *inputs: (compiled(*inputs),), [x, up, down]), want, 1e-5)


def test_without_a_compiler_torch_multiplies(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv("LM_BACKEND", "auto")
    monkeypatch.setattr(affine, "library", Library(affine.library.source, **affine.library.functions))
    affine.columns.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"affine\.c .*no-such-compiler"):
        check(ops.linear, formula, [normal(2, 20, 32), normal(64, 32)], torch.float32)
    monkeypatch.setenv("LM_BACKEND", "native")
    with pytest.raises(BuildError, match="no-such-compiler"):
        ops.linear(normal(2, 20, 32), normal(64, 32))


def test_no_memory():
    with pytest.raises(MemoryError, match="product of matrices"):
        affine._check(1)


def test_the_module_is_that_of_torch(backend):
    ours, theirs = ops.Linear(32, 64), nn.Linear(32, 64)
    ours.load_state_dict(theirs.state_dict())
    x = normal(2, 20, 32)
    assert_close([ours(x)], [theirs(x)], 1e-5)
    assert isinstance(ours, nn.Linear)
