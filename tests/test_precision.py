"""Mixed precision: the recurrence and the loss stay in float32, nothing overflows, training comes to the same loss."""

import contextlib

import pytest
import torch
from torch import Tensor

from lm import recurrence
from lm.config.options import ModelConfig
from lm.mixers import MIXERS, s4d
from lm.model import Block, LanguageModel
from lm.training.loss import nll
from tests.harness.precision import compare

TYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (0.0, 1e-4, 1.0, 1e4)
SCANS = {"linear_scan": 2, "mingru_scan": 2, "minlstm_scan": 3}
every_mixer = pytest.mark.parametrize("mixer", MIXERS)
every_type = pytest.mark.parametrize("dtype", TYPES, ids=str)


def autocast(dtype: torch.dtype):
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype)


# ---------------------------------------------------------------- float32 inside


def slow_sum(scan) -> float:
    """10,000 steps that add 1 to a state that forgets nothing: bfloat16 stays at 256, float16 at 2,048."""
    one = torch.ones(1, 10_000, 1, dtype=torch.bfloat16)
    _, last = scan(one, one)
    return last.item()


def in_bfloat16(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence as it would be without a state in float32."""
    h = torch.zeros_like(b[:, 0])
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
    return h, h


@pytest.mark.parametrize("backend", ["portable", "native"])
def test_the_recurrence_adds_up_in_float32(monkeypatch, backend):
    monkeypatch.setenv("LM_BACKEND", backend)
    with torch.autocast("cpu", torch.bfloat16):
        assert slow_sum(recurrence.linear_scan) == 10_000
    assert slow_sum(in_bfloat16) == 256  # so this test can tell


@pytest.mark.parametrize("backend", ["portable", "native"])
@pytest.mark.parametrize("name", ["mingru_scan", "minlstm_scan"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_slow_gates_move_the_state(monkeypatch, backend, name, dtype):
    """Of the distance left, z = 1/1024 is gone at each step: too little for a state in a half type to move."""
    monkeypatch.setenv("LM_BACKEND", backend)
    logit = torch.logit(torch.tensor(1 / 1024.0))
    gates = [logit] if name == "mingru_scan" else [torch.tensor(20.0), logit]
    x = torch.stack([*gates, torch.tensor(0.5)]).repeat(1, 5_000, 1).to(dtype).requires_grad_()
    _, last = getattr(recurrence, name)(x)
    want, _ = getattr(recurrence, name)(x.detach().double())
    assert last.dtype == torch.float32 and last.item() == pytest.approx(want[0, -1, 0].item(), rel=1e-4)
    (grad,) = torch.autograd.grad(last, x)
    twin = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(getattr(recurrence, name)(twin)[1], twin)
    assert torch.allclose(grad[0, -100:, -1].double(), expected[0, -100:, -1], rtol=1e-2)  # of the newest candidates


def slow_cell(mixer: str) -> torch.nn.Module:
    """A GRU or LSTM of one channel whose gates are near 0.001 and 0.999, and which nothing but its biases moves."""
    module = MIXERS[mixer](1, expansion=1.0)
    slow = torch.logit(torch.tensor(1 / 1024.0))
    values = [0.0, -slow, 5.0] if "gru" in mixer else [slow, -slow, 5.0, 20.0]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        bias = module.input.bias if "reference" in mixer else module.cell.bias_ih_l0
        bias.copy_(torch.tensor(values))
    return module


@pytest.mark.parametrize("mixer", ["gru", "lstm", "gru_reference", "lstm_reference"])
def test_slow_gates_of_the_traditional_cells_move_the_state(mixer):
    module, x = slow_cell(mixer), torch.zeros(1, 2_000, 1)
    with torch.no_grad():
        _, want = module(x)
        with torch.autocast("cpu", torch.bfloat16):
            _, state = module(x)
    assert want[-1].item() > 0.8 and state[-1].item() == pytest.approx(
        want[-1].item(), rel=5e-3
    )  # the gates' own logits may be rounded


def test_torchs_own_cell_under_autocast_does_not():
    """So the test above can tell."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, last = slow_cell("gru").cell(torch.zeros(1, 2_000, 1))
    assert last.item() < 0.3


@pytest.mark.parametrize("mixer", ["mingru", "minlstm", "mamba", "s4d"])
def test_what_mixers_carry_under_autocast_is_float32(monkeypatch, mixer):
    """A spy sees what enters S4D's convolution; the scans of the others are tested above and in test_selective.py."""
    seen = set()

    def spy(module, name):
        function = getattr(module, name)

        def watched(*args, **kwargs):
            seen.update(x.dtype for x in args if isinstance(x, Tensor) and x.is_floating_point())
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, watched)

    spy(s4d, "convolve")
    with torch.autocast("cpu", torch.bfloat16):
        _, state = MIXERS[mixer](16)(torch.randn(2, 40, 16))
    assert state[0].dtype == torch.float32
    assert seen == ({torch.float32} if mixer == "s4d" else set())


def test_the_loss_of_training_is_float32():
    model = LanguageModel(11, ModelConfig(width=16, layers=1, residual_init=1.0))
    torch.nn.init.normal_(model.head.weight)
    ids = torch.randint(0, 11, (2, 30))
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = model(ids)
        loss = nll(logits, ids)
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    exact = torch.nn.functional.cross_entropy(logits.double().flatten(0, 1), ids.flatten())
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)  # bfloat16 would be off by 1e-3


# ---------------------------------------------------------------- nothing overflows


@every_type
@pytest.mark.parametrize("backend", ["portable", "native"])
@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("size", SIZES)
def test_any_input_gives_finite_values_and_gradients(monkeypatch, dtype, backend, name, size):
    monkeypatch.setenv("LM_BACKEND", backend)
    torch.manual_seed(0)
    x = (size * torch.randn(2, 100, SCANS[name] * 8).clamp(-1, 1)).to(dtype)
    if name == "linear_scan":
        a, b = x.chunk(2, dim=-1)
        inputs = [(a / max(size, 1.0)).requires_grad_(), (b / 100).requires_grad_()]  # |a| <= 1; sums below 65,504
    else:
        inputs = [x.requires_grad_()]
    h, last = getattr(recurrence, name)(*inputs)
    grads = torch.autograd.grad(h.float().mean() + last.mean(), inputs)
    assert all(y.isfinite().all() for y in (h, last, *grads))


@every_mixer
@every_type
@pytest.mark.parametrize("size", SIZES)
def test_any_input_of_a_block_gives_finite_values_and_gradients(mixer, dtype, size):
    torch.manual_seed(0)
    block = Block(MIXERS[mixer](16), ModelConfig(width=16))
    x = (size * torch.randn(2, 20, 16).clamp(-1, 1)).requires_grad_()
    with autocast(dtype):
        y, state = block(x)
        total = y.float().mean() + sum(s.float().mean() for s in state)
    grads = torch.autograd.grad(total, [x, *block.parameters()], allow_unused=True, materialize_grads=True)
    assert all(y.isfinite().all() for y in (y, *state, *grads))


# ---------------------------------------------------------------- training


@pytest.mark.slow
@every_mixer
def test_300_steps_in_bfloat16_come_to_the_same_loss(mixer):
    plain, mixed = compare(mixer, seeds=(1, 2, 3))
    assert abs(sum(mixed) - sum(plain)) / 3 <= 0.01
