"""Muon, AdamW and the schedule against independent forms."""

import copy
from itertools import pairwise

import pytest
import torch

from lm.config.options import ModelConfig, OptimConfig
from lm.mixers import MIXERS
from lm.model import LanguageModel
from lm.training import muon
from lm.training.optim import (
    MuonAdamW,
    clip_gradients,
    lr_factor,
    make_optimizer,
    set_learning_rate,
)


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    return muon.orthogonalise([matrix], muon.POLYNOMIALS["jordan5"])[0]


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.5, 0.8)])
def test_adamw_part_equals_torch_to_the_bit(betas):
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Linear(5, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    group = {"algorithm": "adamw", "params": list(ours.parameters()), "lr": 0.01, "weight_decay": 0.1}
    optimizers = (
        MuonAdamW([group if betas == (0.9, 0.99) else {**group, "betas": betas}]),  # those are the default
        torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1, betas=betas, fused=True),
    )
    for _ in range(5):
        x = torch.randn(7, 5)
        for module, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
        state = optimizers[0].state[a]
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"} and state["step"] == 5
        assert all(torch.equal(value, state[name]) for name, value in optimizers[1].state[b].items())


def test_parameters_without_a_gradient_stay_and_states_follow_their_parameter():
    used, unused = (torch.nn.Parameter(torch.ones(2, 2, device="cpu")) for _ in range(2))
    used.grad = torch.ones(2, 2)
    groups = [{"algorithm": name, "params": [], "lr": 0.1, "weight_decay": 0.1} for name in ("adamw", "muon")]
    groups[0]["params"] = [used, unused]
    groups[1]["params"] = [torch.nn.Parameter(torch.ones(3, 3))]
    optimizer = MuonAdamW(groups)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):  # torch's defaults say nothing of the parameter
            assert optimizer.step() is None
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(unused, torch.ones(2, 2)) and torch.equal(groups[1]["params"][0], torch.ones(3, 3))
    assert not torch.equal(used, torch.ones(2, 2))
    assert {(x.device.type, x.dtype) for x in optimizer.state[used].values()} == {("cpu", torch.float32)}


def test_a_closure_is_evaluated_with_gradients():
    p = torch.nn.Parameter(torch.tensor([[2.0]]))
    optimizer = MuonAdamW([{"algorithm": "adamw", "params": [p], "lr": 0.1}])

    def closure():
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4
    assert p.item() == pytest.approx(1.9)  # AdamW's first step is the learning rate; no decay by default


def test_muon_on_a_wide_matrix_has_the_plain_learning_rate():
    torch.manual_seed(0)
    p, grad = torch.nn.Parameter(torch.randn(3, 5)), torch.randn(3, 5)
    before = p.detach().clone()
    optimizer = MuonAdamW([{"algorithm": "muon", "params": [p], "lr": 0.1}])
    p.grad = grad
    optimizer.step()
    torch.testing.assert_close(p.detach(), before - 0.1 * orthogonalised(grad))  # 0.05 g + 0.95 * 0.05 g, scaled away
    assert set(optimizer.state[p]) == {"momentum"}
    torch.testing.assert_close(optimizer.state[p]["momentum"], 0.05 * grad)


def test_muon_step_by_hand():
    torch.manual_seed(0)
    p, grads = torch.nn.Parameter(torch.randn(8, 4)), torch.randn(2, 8, 4)
    optimizer = MuonAdamW([{"algorithm": "muon", "params": [p], "lr": 0.1, "weight_decay": 0.5, "momentum": 0.9}])
    expected, momentum = p.detach().clone(), torch.zeros(8, 4)
    for grad in grads:
        momentum = 0.9 * momentum + 0.1 * grad
        update = orthogonalised(0.1 * grad + 0.9 * momentum) * 2**0.5
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * update
        p.grad = grad.clone()
        optimizer.step()
    torch.testing.assert_close(p.detach(), expected)


def test_normuon_by_hand():
    """Rows that were large get smaller; the norm of the update stays. Rows of zeros, and updates of them, stay zero."""
    torch.manual_seed(0)
    p, second = torch.nn.Parameter(torch.zeros(3, 2)), [0.0, 0.0, 0.0]
    optimizer = MuonAdamW([{"algorithm": "muon", "params": [p], "lr": 0.1, "momentum": 0.0, "beta2": 0.9}])
    expected = torch.zeros(3, 2)
    for grad in (
        torch.tensor([[1.0, 2.0], [0.5, -0.1], [0.0, 0.0]]),
        torch.tensor([[0.1, 0.2], [1.0, 0.3], [0.0, 0.0]]),
    ):
        rows = orthogonalised(grad).tolist()
        squares = [sum(x * x for x in row) / 2 for row in rows]
        second = [0.9 * old + 0.1 * new for old, new in zip(second, squares, strict=True)]
        scaled = [[x / (s**0.5 + 1e-8) for x in row] for row, s in zip(rows, second, strict=True)]
        norms = [sum(x * x for row in matrix for x in row) ** 0.5 for matrix in (rows, scaled)]
        expected -= 0.1 * 1.5**0.5 * torch.tensor(scaled) * norms[0] / norms[1]
        p.grad = grad
        optimizer.step()
    torch.testing.assert_close(p.detach(), expected)
    torch.testing.assert_close(optimizer.state[p]["second_moment"], torch.tensor(second)[:, None])
    p.grad = torch.zeros(3, 2)
    optimizer.step()
    assert p.isfinite().all()


@pytest.mark.parametrize("shape", [(8, 4), (4, 8)])
def test_muon_equals_torchs_but_for_its_rounding(shape):
    """torch.optim.Muon orthogonalises in bfloat16."""
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(p) for p in torch.randn(1, *shape).repeat(2, 1, 1))
    options = {"lr": 0.1, "weight_decay": 0.5, "momentum": 0.9}
    optimizers = (
        MuonAdamW([{"algorithm": "muon", "params": [ours], **options}]),
        torch.optim.Muon([theirs], adjust_lr_fn="original", **options),
    )
    for grad in torch.randn(4, *shape):
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            p.grad = grad.clone()
            optimizer.step()
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=0, atol=1e-2)


def test_state_survives_a_round_trip():
    def step(model, optimizer, seed):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        model(torch.randint(0, 20, (2, 9)))[0].square().sum().backward()
        optimizer.step()

    def fresh():
        model = LanguageModel(20, ModelConfig(width=16, layers=1, residual_init=1.0))
        torch.nn.init.normal_(model.head.weight)
        return model, make_optimizer(model, OptimConfig())

    model, optimizer = fresh()
    step(model, optimizer, seed=1)
    other, restored = fresh()
    other.load_state_dict(model.state_dict())
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, optimizer, seed=2)
    step(other, restored, seed=2)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


TABLES = ("convolution.weight", "A_log", "A_real_log", "A_imag", "C")
"""Parameters with two axes that are not matrices to multiply with: neither orthogonalised nor decayed."""


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_groups_hold_every_parameter_once_and_decay_matrices_only(name, mixer):
    model = LanguageModel(20, ModelConfig(mixer=mixer, width=16, layers=2))
    optimizer = make_optimizer(model, OptimConfig(name=name))
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters()} and len(grouped) == len(set(grouped))
    names = {id(p): n for n, p in model.named_parameters()}
    for group in optimizer.param_groups:
        for p in group["params"]:
            decays = p.dim() == 2 and not names[id(p)].endswith(TABLES)
            assert (group["weight_decay"] > 0) == decays
            in_blocks = names[id(p)].startswith("blocks")
            assert (group["algorithm"] == "muon") == (name == "muon" and decays and in_blocks)


def test_options_reach_their_groups():
    model = LanguageModel(20, ModelConfig(width=16, layers=2))
    config = OptimConfig(lr=0.3, muon_lr=0.2, weight_decay=0.4, beta1=0.5, beta2=0.6, momentum=0.7, muon_beta2=0.8)
    matrices, others, muon = make_optimizer(model, config).param_groups
    for group, decay in ((matrices, 0.4), (others, 0.0)):
        assert group["algorithm"] == "adamw" and group["betas"] == (0.5, 0.6)
        assert (group["lr"], group["peak_lr"], group["weight_decay"]) == (0.3, 0.3, decay)
    assert muon["algorithm"] == "muon" and muon["momentum"] == 0.7
    assert (muon["lr"], muon["peak_lr"], muon["weight_decay"], muon["beta2"]) == (0.2, 0.2, 0.4, 0.8)
    rates = [make_optimizer(model, OptimConfig(name=name)).param_groups[0]["peak_lr"] for name in ("muon", "adamw")]
    assert rates == [0.01, 0.002]


def test_clipping_scales_all_gradients_by_one_factor_and_returns_the_norm_before():
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters())
    for largest, factor in ((6.5, 0.5), (13.5, 1.0), (0.0, 1.0)):
        model.weight.grad, model.bias.grad = torch.tensor([[3.0, 4.0]]), torch.tensor([12.0])
        assert clip_gradients(optimizer, largest).item() == pytest.approx(13)
        torch.testing.assert_close(model.weight.grad, factor * torch.tensor([[3.0, 4.0]]))
        torch.testing.assert_close(model.bias.grad, factor * torch.tensor([12.0]))


def test_the_learning_rate_of_a_step_is_a_share_of_each_groups_peak():
    p, q = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    groups = [{"algorithm": "adamw", "params": [x], "lr": 9.0, "peak_lr": peak} for x, peak in ((p, 2.0), (q, 4.0))]
    optimizer = MuonAdamW(groups)
    for _ in range(2):
        set_learning_rate(optimizer, OptimConfig(warmup_steps=4, schedule="linear"), 1, 0.25)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.75, 1.5])  # 2 / 4 * 3 / 4


SCHEDULES = {
    "linear": {0.0: 1.0, 0.25: 0.75, 0.5: 0.5, 1.0: 0.0, -1.0: 1.0, 3.0: 0.0},
    "cosine": {0.0: 1.0, 1 / 3: 0.75, 0.5: 0.5, 2 / 3: 0.25, 1.0: 0.0, -1.0: 1.0, 3.0: 0.0},
    "constant": {0.0: 1.0, 0.5: 1.0, 0.6: 1.0, 0.8: 0.5, 0.9: 0.25, 1.0: 0.0, -1.0: 1.0, 3.0: 0.0},
}
"""What is left of the peak at some shares of the budget, with a decay over the last 0.4."""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_by_hand(schedule):
    for progress, left in SCHEDULES[schedule].items():
        config = OptimConfig(schedule=schedule, warmup_steps=10, decay=0.4)
        assert lr_factor(config, 1000, progress) == pytest.approx(left, abs=1e-9)
        assert lr_factor(config, 3, progress) == pytest.approx(0.4 * left, abs=1e-9)  # the fourth of ten steps
        config.final_lr = 0.2
        assert lr_factor(config, 9, progress) == pytest.approx(0.2 + 0.8 * left)
    assert lr_factor(OptimConfig(schedule="constant", warmup_steps=0, decay=0.0), 0, 1.0) == 1


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedule_warms_up_and_ends_at_its_final_rate(schedule):
    config = OptimConfig(schedule=schedule, warmup_steps=10, final_lr=0.1, decay=0.25)
    factors = [lr_factor(config, step, step / 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.1, abs=0.01) and factors[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(factors[10:]))
    if schedule == "constant":
        assert factors[75] == 1 and factors[90] == pytest.approx(0.1 + 0.9 * 0.4)


def test_schedule_is_safe_outside_its_budget():
    assert lr_factor(OptimConfig(warmup_steps=0), 0, 0.0) == 1
    assert lr_factor(OptimConfig(), 10_000, 1.7) == 0
