"""Muon, AdamW and the schedule against independent forms."""

import copy
from itertools import pairwise

import pytest
import torch

from lm.config.options import ModelConfig, OptimConfig
from lm.mixers import MIXERS
from lm.model import LanguageModel
from lm.training.optim import MuonAdamW, lr_factor, make_optimizer, newton_schulz, newton_schulz_gram, orthogonalise


@pytest.mark.parametrize("shape", [(8, 8), (64, 16), (16, 64)])
def test_orthogonalise_brings_singular_values_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.6 and values.max() < 1.25


@pytest.mark.parametrize("rank", [3, 40])
def test_gram_form_equals_the_plain_iteration(rank):
    torch.manual_seed(0)
    x = torch.randn(40, rank) @ torch.randn(rank, 160)
    x /= x.norm()
    torch.testing.assert_close(newton_schulz_gram(x, 5), newton_schulz(x, 5), atol=2e-4, rtol=0)


def test_orthogonalise_keeps_the_singular_vectors():
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(12, 12))
    matrix = u @ torch.diag(torch.linspace(0.5, 1.0, 12)) @ v
    assert (u.T @ orthogonalise(matrix) @ v.T).fill_diagonal_(0).abs().max() < 1e-4


def test_orthogonalise_survives_zero_and_huge():
    assert orthogonalise(torch.zeros(4, 4)).abs().max() == 0
    assert orthogonalise(torch.full((4, 4), 1e18)).isfinite().all()


def test_adamw_part_equals_torch():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Linear(5, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    group = {"algorithm": "adamw", "params": list(ours.parameters()), "lr": 0.01, "weight_decay": 0.1}
    optimizers = (
        MuonAdamW([group]),
        torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1, betas=(0.9, 0.99)),
    )
    for _ in range(5):
        x = torch.randn(7, 5)
        for module, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_muon_step_by_hand():
    torch.manual_seed(0)
    p, grads = torch.nn.Parameter(torch.randn(8, 4)), torch.randn(2, 8, 4)
    optimizer = MuonAdamW([{"algorithm": "muon", "params": [p], "lr": 0.1, "weight_decay": 0.5, "momentum": 0.9}])
    expected, momentum = p.detach().clone(), torch.zeros(8, 4)
    for grad in grads:
        momentum = 0.9 * momentum + 0.1 * grad
        update = orthogonalise(0.1 * grad + 0.9 * momentum) * 2**0.5
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * update
        p.grad = grad.clone()
        optimizer.step()
    torch.testing.assert_close(p.detach(), expected)


def test_state_survives_a_round_trip():
    def step(model, optimizer, seed):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        model(torch.randint(0, 20, (2, 9)))[0].square().sum().backward()
        optimizer.step()

    def fresh():
        model = LanguageModel(20, ModelConfig(width=16, layers=1))
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
