"""The loss of targets, native and as PyTorch computes it."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lm import ops
from tests.recurrence.helpers import TOLERANCE, assert_close

every_type = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
pytestmark = pytest.mark.usefixtures("threads")


def inputs_of(B: int, T: int, V: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(V)
    logits = torch.randn(B, T, V, generator=generator).mul(4).to(dtype).requires_grad_()
    return logits, torch.randint(V, (B, T), generator=generator)


def with_gradient(logits: Tensor, targets: Tensor, ignored: int = -100) -> list[Tensor]:
    loss = ops.cross_entropy(logits, targets, ignored)
    return [loss, *torch.autograd.grad(3 * loss, logits)]


def exact(logits: Tensor, targets: Tensor, ignored: int = -100) -> list[Tensor]:
    wide = logits.detach().double().requires_grad_()
    loss = functional.cross_entropy(wide.flatten(0, -2), targets.flatten(), ignore_index=ignored)
    return [loss, *torch.autograd.grad(3 * loss, wide)]


@every_type
@pytest.mark.parametrize("size", [(1, 2, 1), (3, 37, 66), (2, 5, 1000), (1, 700, 7)], ids=str)
def test_sizes_and_types(backend, dtype, size):
    logits, targets = inputs_of(*size, dtype)
    got = with_gradient(logits, targets)
    assert [y.dtype for y in got] == [torch.float32, dtype]
    if size[2] == 1:
        assert not any(y.any() for y in got)
    else:
        assert_close(got[:1], exact(logits, targets)[:1], 1e-6)
        assert_close(got[1:], exact(logits, targets)[1:], TOLERANCE[dtype])


def test_by_hand(backend):
    logits = torch.tensor([[[0.0, math.log(3)], [1.0, 1.0]]], requires_grad=True)
    loss, grad = with_gradient(logits, torch.tensor([[1, 0]]))
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    torch.testing.assert_close(grad, torch.tensor([[[0.375, -0.375], [-0.75, 0.75]]]))


@pytest.mark.parametrize("ignored", [-100, 2, -1])
def test_targets_that_are_left_out(backend, ignored):
    logits, targets = inputs_of(2, 9, 5)
    targets[0, 3:], targets[1, 0] = ignored, ignored
    got = with_gradient(logits, targets, ignored)
    assert_close(got, exact(logits, targets, ignored), 1e-5)
    assert not got[1][targets == ignored].any()
    everything = ops.cross_entropy(logits, torch.full_like(targets, ignored), ignored)
    assert everything.isnan()


def test_extreme_logits(backend):
    """Certain and right, certain and wrong, all equal; and numbers that are none."""
    logits = torch.tensor(
        [[[1e4, -1e4, 0.0], [1e4, -1e4, 0.0], [-1e30] * 3, [0.0, float("-inf"), 0.0]]], requires_grad=True
    )
    loss, grad = with_gradient(logits, torch.tensor([[0, 1, 2, 0]]))
    assert loss.item() == pytest.approx((0 + 2e4 + math.log(3) + math.log(2)) / 4)
    torch.testing.assert_close(
        grad * 4 / 3, torch.tensor([[[0, 0, 0], [1, -1, 0], [1 / 3, 1 / 3, -2 / 3], [-0.5, 0, 0.5]]])
    )
    for bad in (float("nan"), float("inf")):
        assert not ops.cross_entropy(torch.tensor([[[0.0, bad], [0.0, 0.0]]]), torch.tensor([[0, 0]])).isfinite()


@pytest.mark.parametrize("wrong", [-1, 5, 2**40])
def test_targets_that_do_not_exist(backend, wrong):
    logits, targets = inputs_of(2, 9, 5)
    targets[1, 8] = wrong
    with pytest.raises(IndexError):
        ops.cross_entropy(logits, targets)


def test_other_arrangements_in_memory(backend):
    logits, targets = inputs_of(4, 9, 5)
    want = with_gradient(logits, targets)
    strided = logits.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    got = with_gradient(strided, targets.T.contiguous().T)
    assert_close(got, want, 1e-6)


def test_the_number_of_threads_changes_nothing(compiler, threads, monkeypatch):
    from lm.native import choice

    monkeypatch.setattr(choice, "SMALL", 1)
    logits, targets = inputs_of(3, 37, 66)
    results = []
    for number in (1, 2, 3):
        threads(number)
        results.append(with_gradient(logits, targets))
    assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other, strict=True))
