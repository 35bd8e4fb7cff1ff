"""The element-wise operations, native and portable, against their formulas in float64; the choice between the two."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lm import ops
from lm.native import choice
from lm.native.build import BuildError, Library
from lm.ops import cpu, portable
from lm.recurrence import cpu as recurrence_cpu
from tests.recurrence.helpers import LAYOUTS, TOLERANCE, assert_close, outputs_of

EPS = 0.01
INF = float("inf")
SIZES = [(1, 1, 1), (2, 3, 1), (3, 37, 130), (2, 5, 1000), (1, 2, 513)]
"""(B, T, D); tiles of the kernels have 512 channels."""
every_type = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
pytestmark = pytest.mark.usefixtures("threads")


def rms_norm(x: Tensor, weight: Tensor) -> tuple[Tensor]:
    return (ops.rms_norm(x, weight, EPS),)


def squared_relu(x: Tensor) -> tuple[Tensor]:
    return (ops.squared_relu(x),)


def norm_formula(x: Tensor, weight: Tensor) -> tuple[Tensor]:
    return (weight * x / (x.pow(2).sum(-1, keepdim=True) / x.shape[-1] + EPS).sqrt(),)


def relu_formula(x: Tensor) -> tuple[Tensor]:
    return (torch.where(x > 0, x * x, torch.zeros_like(x)),)


def convolution_formula(x: Tensor, past: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """One step after the other."""
    outputs = []
    for t in range(x.shape[1]):
        last = torch.cat([past, x[:, t : t + 1]], dim=1)
        outputs.append(bias + (last * weight).sum(1))
        past = last[:, 1:]
    return torch.stack(outputs, dim=1), past


OPS: dict[str, tuple[Callable, Callable]] = {
    "rms_norm": (rms_norm, norm_formula),
    "squared_relu": (squared_relu, relu_formula),
    "causal_convolution": (ops.causal_convolution, convolution_formula),
}
"""Each operation and its formula, as functions of tensors that return a tuple."""
every_op = pytest.mark.parametrize("name", OPS)


def inputs_of(name: str, B: int, T: int, D: int, dtype: torch.dtype = torch.float32, K: int = 4) -> list[Tensor]:
    """Leaves; sequences have the given type, weights are float32."""
    generator = torch.Generator().manual_seed(T * D + K)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    inputs = [normal(B, T, D).to(dtype)]
    if name == "rms_norm":
        inputs += [normal(D)]
    if name == "causal_convolution":
        inputs += [normal(B, K - 1, D).to(dtype), normal(K, D), normal(D)]
    return [x.requires_grad_() for x in inputs]


def check(name: str, B: int, T: int, D: int, dtype: torch.dtype = torch.float32, K: int = 4) -> None:
    """Values, types and gradients."""
    function, formula = OPS[name]
    inputs = inputs_of(name, B, T, D, dtype, K)
    got = outputs_of(function, inputs)
    outputs = len(got) - len(inputs)
    assert [x.dtype for x in got] == [dtype] * outputs + [x.dtype for x in inputs]
    want = outputs_of(formula, [x.detach().double().requires_grad_() for x in inputs], dtype)
    assert_close(got, want, TOLERANCE[dtype])


def is_native(y: Tensor) -> bool:
    return type(y.grad_fn).__name__ in ("_RMSNormBackward", "_SquaredReLUBackward", "_CausalConvolutionBackward")


# ---------------------------------------------------------------- values and gradients


@every_op
@every_type
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes_and_types(backend, name, dtype, size):
    check(name, *size, dtype)


@every_type
@pytest.mark.parametrize("K", [1, 2, 7, 40])
def test_sizes_of_a_convolution(backend, dtype, K):
    """Also longer than the sequence, so that a part of the past stays past."""
    if K == 1:
        x, _, weight, bias = inputs_of("causal_convolution", 2, 5, 6, dtype, K)
        y, past = ops.causal_convolution(x, None, weight, bias)
        assert past.shape == (2, 0, 6) and past.dtype == dtype
        assert_close([y], [bias + x.double() * weight], TOLERANCE[dtype])
    else:
        check("causal_convolution", 2, 5, 6, dtype, K)


def test_norm_by_hand(backend):
    x, weight = torch.tensor([[[1e-3, 1e-3], [3.0, 4.0]]], requires_grad=True), torch.tensor([1.0, 2.0])
    torch.testing.assert_close(ops.rms_norm(x, weight, 3e-6)[0, 0], torch.tensor([0.5, 1.0]))
    y = ops.rms_norm(x, weight, 0.0)[0, 1]
    torch.testing.assert_close(y, torch.tensor([3.0, 8.0]) / 12.5**0.5)
    (grad,) = torch.autograd.grad(y[0], x)  # d(3 s) / dx for s = (mean x^2)^(-1/2): s - 9 s^3 / 2 and -12 s^3 / 2
    torch.testing.assert_close(grad, torch.tensor([[[0.0, 0.0], [12.5**-0.5 - 4.5 * 12.5**-1.5, -6 * 12.5**-1.5]]]))


def test_squared_relu_by_hand(backend):
    x = torch.tensor([-1.0, 0.0, 3.0, INF, -INF, float("nan")])[None, :, None].requires_grad_()
    y = ops.squared_relu(x)
    torch.testing.assert_close(y.flatten(), torch.tensor([0.0, 0.0, 9.0, INF, 0.0, float("nan")]), equal_nan=True)
    (grad,) = torch.autograd.grad(y.flatten(), x, torch.tensor([INF, INF, 5.0, 1.0, INF, 1.0]))
    torch.testing.assert_close(grad.flatten(), torch.tensor([0.0, 0.0, 30.0, INF, 0.0, float("nan")]), equal_nan=True)


def test_convolution_by_hand(backend):
    x, past, weight, bias = (
        torch.tensor(numbers, requires_grad=True) for numbers in ([[[1.0], [2.0]]], [[[3.0]]], [[10.0], [1.0]], [0.5])
    )
    y, last = ops.causal_convolution(x, past, weight, bias)
    assert y.flatten().tolist() == [31.5, 12.5] and last.flatten().tolist() == [2.0]
    grads = torch.autograd.grad(y.sum(), [x, past, weight, bias])
    assert [grad.flatten().tolist() for grad in grads] == [[11.0, 1.0], [10.0], [4.0, 3.0], [2.0]]


def test_norm_of_rows_of_any_size(backend):
    """Finite for zeros, and for numbers whose squares are neither too large nor too small for float32."""
    x = torch.tensor([0.0, 1e-30, 1e-10, 1.0, 1e10, 1e17])[None, :, None].repeat(1, 1, 9).requires_grad_()
    y = ops.rms_norm(x, torch.ones(9))
    grads = torch.autograd.grad(y.sum(), x)
    assert y[0, :2].abs().max() < 1e-20 and all(z.isfinite().all() for z in (y, *grads))
    torch.testing.assert_close(y[0, 3:], torch.ones(3, 9))


@every_type
def test_default_epsilon_is_that_of_torch(backend, dtype):
    x = torch.full((1, 2, 4), 1e-3, dtype=dtype)
    want = nn.functional.rms_norm(x, (4,))
    torch.testing.assert_close(ops.rms_norm(x, torch.ones(4)), want, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_no_past_is_zeros(backend):
    x, past, weight, bias = inputs_of("causal_convolution", 2, 9, 5)
    for y, z in zip(
        ops.causal_convolution(x, None, weight, bias),
        ops.causal_convolution(x, torch.zeros_like(past), weight, bias),
        strict=True,
    ):
        assert torch.equal(y, z)


def test_past_of_another_type(backend):
    """As when a float32 model continues under autocast: past is brought to x's type, and its gradient back."""
    x, _, weight, bias = inputs_of("causal_convolution", 2, 9, 5, torch.bfloat16)
    past = torch.randn(2, 3, 5, requires_grad=True)
    y, new = ops.causal_convolution(x, past, weight, bias)
    assert y.dtype == new.dtype == torch.bfloat16
    (grad,) = torch.autograd.grad(y.sum(), past)
    assert grad.dtype == torch.float32 and grad.any()


@pytest.mark.parametrize("pieces", [[1] * 9, [2, 7], [5, 1, 3]], ids=str)
def test_a_sequence_in_pieces(backend, pieces):
    """Gradients flow through the past into the pieces before."""
    inputs = inputs_of("causal_convolution", 2, 9, 5)

    def in_pieces(x: Tensor, past: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        outputs = []
        for piece in x.split(pieces, dim=1):
            y, past = ops.causal_convolution(piece, past, weight, bias)
            outputs.append(y)
        return torch.cat(outputs, dim=1), past

    assert_close(outputs_of(in_pieces, inputs), outputs_of(ops.causal_convolution, inputs), 1e-6)


@every_op
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(backend, name, layout):
    inputs = inputs_of(name, 3, 7, 24)
    function = OPS[name][0]
    got = outputs_of(lambda x, *others: function(layout(x), *others), inputs)
    want = outputs_of(lambda x, *others: function(layout(x).contiguous(), *others), inputs)
    assert_close(got, want, 1e-6)


def test_weights_that_are_not_contiguous(backend):
    x, past, weight, bias = (y.detach() for y in inputs_of("causal_convolution", 2, 9, 5))
    strided = [torch.stack([y, -y], dim=-1)[..., 0] for y in (weight, bias)]
    assert torch.equal(ops.causal_convolution(x, past, *strided)[0], ops.causal_convolution(x, past, weight, bias)[0])
    assert torch.equal(ops.rms_norm(x, strided[1]), ops.rms_norm(x, bias))


@every_op
def test_gradients_that_are_expanded(backend, name):
    function, formula = OPS[name]
    inputs = inputs_of(name, 3, 7, 24)
    got = torch.autograd.grad(function(*inputs)[0].mean(1).sum(), inputs)
    twins = [x.detach().double().requires_grad_() for x in inputs]
    assert_close(list(got), list(torch.autograd.grad(formula(*twins)[0].mean(1).sum(), twins)), 1e-5)


@every_op
def test_gradient_of_one_input(backend, name):
    """The others are frozen."""
    function, _ = OPS[name]
    inputs = inputs_of(name, 2, 7, 5)
    wanted = torch.autograd.grad(function(*inputs)[0].sum(), inputs)
    for i, want in enumerate(wanted):
        frozen = [x.detach() for x in inputs]
        frozen[i].requires_grad_()
        (got,) = torch.autograd.grad(function(*frozen)[0].sum(), frozen[i])
        assert torch.equal(got, want)


@every_op
@pytest.mark.parametrize("size", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=["no rows", "no steps", "no channels"])
def test_empty(backend, name, size):
    inputs = inputs_of(name, *size)
    y, *past = OPS[name][0](*inputs)
    assert y.shape == size and all(p.shape == (size[0], 3, size[2]) for p in past)
    grads = torch.autograd.grad(y.sum(), inputs, allow_unused=True, materialize_grads=True)
    assert not any(grad[..., :-1].any() for grad in grads)


@every_op
@every_type
def test_the_number_of_threads_changes_nothing(compiler, threads, monkeypatch, name, dtype):
    """Nor does a second run."""
    monkeypatch.setattr(choice, "SMALL", 1)
    results = []
    for number in (1, 1, 2, 3):
        threads(number)
        results.append(outputs_of(OPS[name][0], inputs_of(name, 3, 67, 130, dtype)))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@every_op
def test_large_tensors_have_memory_of_their_own(compiler, monkeypatch, name):
    """It comes from a pool; two results and their gradients are alive at once."""
    monkeypatch.setattr(recurrence_cpu, "LARGE", 1)
    function, formula = OPS[name]
    inputs = [inputs_of(name, 2, 9, 130), inputs_of(name, 2, 9, 130, K=4)]
    with torch.no_grad():
        inputs[1][0].neg_()
    results = [function(*x) for x in inputs]
    grads = [torch.autograd.grad(y[0].sum(), x) for y, x in zip(results, inputs, strict=True)]
    for x, y, grad in zip(inputs, results, grads, strict=True):
        twins = [z.detach().double().requires_grad_() for z in x]
        want = formula(*twins)
        assert_close([y[0], *grad], [want[0], *torch.autograd.grad(want[0].sum(), twins)], 1e-5)


# ---------------------------------------------------------------- how PyTorch sees them


@every_op
def test_gradcheck(name):
    inputs = [x.detach().double().requires_grad_() for x in inputs_of(name, 2, 5, 3)]
    assert torch.autograd.gradcheck(OPS[name][0], inputs)
    assert torch.autograd.gradgradcheck(OPS[name][0], inputs)


@every_op
def test_native_kernels_are_differentiated_once(compiler, name):
    inputs = inputs_of(name, 2, 5, 3)
    y = OPS[name][0](*inputs)[0]
    assert is_native(y)
    (grad,) = torch.autograd.grad(y.square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@every_op
def test_without_gradients(backend, name):
    inputs = inputs_of(name, 2, 5, 3)
    function, want = OPS[name][0], OPS[name][0](*inputs)[0]
    with torch.no_grad():
        y = function(*inputs)[0]
        assert torch.equal(y, want) and not y.requires_grad
    with torch.inference_mode():
        y = function(*inputs)[0]
        assert y.is_inference() and torch.equal(y, want)
    assert not function(*(x.detach() for x in inputs))[0].requires_grad


@every_op
@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")  # torch's compiler warns of torch
def test_compile_sees_the_operations_of_torch(backend, monkeypatch, name):
    function, inputs = OPS[name][0], inputs_of(name, 2, 5, 3)
    want = outputs_of(function, inputs)

    def fail(*arguments):
        raise AssertionError("a native kernel was called")

    for native in ("rms_norm", "squared_relu", "causal_convolution"):
        monkeypatch.setattr(cpu, native, fail)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_close(outputs_of(compiled, inputs), want, 1e-6)


@every_op
def test_torch_func(backend, name):
    function, inputs = OPS[name][0], inputs_of(name, 2, 5, 3)
    want = torch.autograd.grad(function(*inputs)[0].sum(), inputs[0])
    plain = [x.detach() for x in inputs]
    got = torch.func.grad(lambda x: function(x, *plain[1:])[0].sum())(plain[0])
    assert_close([got], list(want), 1e-6)
    several = torch.stack([plain[0], -plain[0]])
    got = torch.func.vmap(lambda x: function(x, *plain[1:])[0])(several)
    assert_close([got[1]], [function(several[1], *plain[1:])[0]], 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_types_under_autocast(backend, dtype):
    """A norm of float32 gives what a projection would round it to; the others keep their input's type."""
    x, weight = inputs_of("rms_norm", 2, 5, 3)
    want = ops.rms_norm(x, weight, EPS)
    with torch.autocast("cpu", dtype):
        y = ops.rms_norm(x, weight, EPS)
        assert ops.rms_norm(x.double(), weight).dtype == torch.float64
        for other in (torch.float32, dtype):
            assert ops.squared_relu(x.to(other)).dtype == other
            assert ops.causal_convolution(x.to(other), None, torch.ones(2, 3), torch.ones(3))[0].dtype == other
        assert all(ops.rms_norm(x.to(half), weight).dtype == half for half in (torch.bfloat16, torch.float16))
    assert y.dtype == dtype
    torch.testing.assert_close(y, want.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    grads = torch.autograd.grad(y.sum(), [x, weight])
    assert [grad.dtype for grad in grads] == [torch.float32] * 2
    assert_close(list(grads), list(torch.autograd.grad(want.sum(), [x, weight])), 1e-5)


# ---------------------------------------------------------------- the choice


@pytest.mark.parametrize("dtype", [*TOLERANCE, torch.float64], ids=str)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_native_kernels_compute_with_float32_weights(backend, dtype, weights):
    x = torch.ones(2, 3, 4, dtype=dtype, requires_grad=True)
    weight = torch.ones(4, dtype=weights)
    native = backend == "native" and dtype != torch.float64
    for y in (ops.rms_norm(x, weight), ops.causal_convolution(x, None, weight[None], weight)[0]):
        assert y.dtype == dtype and is_native(y) == (native and weights == torch.float32)
    assert is_native(ops.squared_relu(x)) == native


@every_op
def test_one_step_is_computed_by_torch(backend, name):
    """A native call would take longer. The number of sequences does not matter: no sample depends on it."""
    for B, T, native in ((1, 1, False), (1000, 1, False), (1, 2, True), (1000, 2, True)):
        inputs = inputs_of(name, B, T, 4)
        assert is_native(OPS[name][0](*inputs)[0]) == (native and backend == "native")
    for function in (ops.squared_relu, lambda x: ops.rms_norm(x, torch.ones(4))):
        x = torch.randn(5, 4, requires_grad=True)  # as `step` has it
        assert torch.equal(function(x), function(x[:, None])[:, 0]) and not is_native(function(x))


def test_other_tensors_than_those_in_the_memory_of_a_cpu(backend):
    class Other(Tensor):
        pass

    for x in (torch.ones(2, 3, 4, device="meta", requires_grad=True), torch.ones(2, 3, 4).as_subclass(Other)):
        weight = torch.ones(4, device=x.device)
        for y in (
            ops.squared_relu(x),
            ops.rms_norm(x, weight),
            ops.causal_convolution(x, None, weight[None], weight)[0],
        ):
            assert y.shape == x.shape and y.device == x.device and type(y) is type(x) and not is_native(y)


def test_without_a_compiler_the_portable_operations_serve(monkeypatch, tmp_path):
    """With one warning, unless the native ones are asked for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv("LM_BACKEND", "auto")
    monkeypatch.setattr(cpu, "library", Library(cpu.library.source, **cpu.library.functions))
    with pytest.warns(RuntimeWarning, match=r"elementwise\.c .*no-such-compiler") as warned:
        for name in OPS:
            check(name, 2, 5, 3)
    assert len(warned) == 1
    monkeypatch.setenv("LM_BACKEND", "native")
    with pytest.raises(BuildError, match="no-such-compiler"):
        ops.squared_relu(torch.zeros(1, 2, 3))


def test_the_twin_has_the_same_functions():
    assert all(callable(getattr(module, name)) for module in (cpu, portable) for name in OPS)


def test_wrong_shapes():
    x = torch.ones(2, 3, 4)
    for weight in (torch.ones(3), torch.ones(1, 4)):
        with pytest.raises(ValueError, match="needs a weight of its last axis"):
            ops.rms_norm(x, weight)
    for weight in (torch.ones(2, 3), torch.ones(0, 4), torch.ones(4)):
        with pytest.raises(ValueError, match="cannot apply weights"):
            ops.causal_convolution(x, None, weight, torch.ones(4))
    with pytest.raises(ValueError, match="cannot apply weights"):
        ops.causal_convolution(x[0], None, torch.ones(2, 4), torch.ones(4))
    with pytest.raises(ValueError, match=r"past of shape \(2, 1, 4\), not \(2, 2, 4\)"):
        ops.causal_convolution(x, torch.ones(2, 2, 4), torch.ones(2, 4), torch.ones(4))
    with pytest.raises(ValueError, match=r"bias of shape \(4,\), not \(1,\)"):
        ops.causal_convolution(x, None, torch.ones(2, 4), torch.ones(1))


def test_norm_of_several_tensors(backend):
    by_hand = ops.total_norm([torch.tensor([[3.0, -4.0]]), torch.tensor(12.0), torch.ones(0)])
    assert by_hand.item() == 13 and by_hand.dtype == torch.float32 and by_hand.shape == ()
    assert ops.total_norm([]).item() == 0
    tensors = [torch.randn(size) for size in (1, 511, 512, 513, 5000)] + [torch.randn(30, 40).T]
    expected = torch.cat([x.flatten() for x in tensors]).double().norm()
    torch.testing.assert_close(ops.total_norm(tensors).double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(ops.total_norm([x.double() for x in tensors]), expected)
    for value in (float("nan"), float("inf")):
        assert ops.total_norm([*tensors, torch.tensor([value])]).item() == pytest.approx(value, nan_ok=True)


def test_norm_of_several_tensors_on_any_number_of_threads(compiler, threads, monkeypatch):
    monkeypatch.setattr(choice, "SMALL", 1)
    tensors = [torch.randn(size) for size in (3, 700, 70_000, 70_000)]
    results = []
    for number in (1, 2, 3):
        threads(number)
        results.append(cpu.total_norm(tensors).item())
    assert len(set(results)) == 1


def test_no_memory():
    with pytest.raises(MemoryError, match="gradients of the weights"):
        cpu._check(1)


# ---------------------------------------------------------------- the module


def test_the_module_is_that_of_torch(backend):
    ours, theirs = ops.RMSNorm(6), nn.RMSNorm(6)
    nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    assert isinstance(ours, nn.RMSNorm) and ours.eps is None and (ops.RMSNorm(6).weight == 1).all()
