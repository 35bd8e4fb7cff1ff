"""Dropout against its definition in NumPy, and its random bits against what chance would do."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lm.native import choice
from lm.ops import Dropout, cpu

TYPES = [torch.float32, torch.bfloat16, torch.float16]
pytestmark = pytest.mark.usefixtures("compiler")


def kept(count: int, p: float, seed: int) -> Tensor:
    """Which elements are kept, by the definition of the hash."""
    x = np.arange(count, dtype=np.uint32) + np.uint32(seed & 0xFFFFFFFF)
    x ^= x >> 17
    x *= np.uint32(0xED5AD4BB)
    x ^= np.uint32(seed >> 32)
    x ^= x >> 11
    x *= np.uint32(0xAC4C1B51)
    x ^= x >> 15
    x *= np.uint32(0x31848BAB)
    x ^= x >> 14
    return torch.from_numpy(x >= np.uint32(round(p * 2**32)))


@pytest.mark.parametrize("out", TYPES, ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("size", [1, 511, 512, 5000])
def test_values(dtype, out, size):
    x, residual, p, seed = torch.randn(size).to(dtype), torch.randn(size), 0.3, (7 << 32) + 0xFFFFFF00
    dropped = torch.where(kept(size, p, seed), x.float() / (1 - p), 0)
    torch.testing.assert_close(cpu.dropout_apply(x, None, p, seed, out), dropped.to(out))
    got = cpu.dropout_apply(x, residual, p, seed, torch.float32)
    torch.testing.assert_close(got, residual + dropped, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_gradients(dtype):
    """The same elements as in forward, whatever is drawn between."""
    torch.manual_seed(0)
    x, residual = torch.randn(5, 7, 30).to(dtype).requires_grad_(), torch.randn(5, 7, 30, requires_grad=True)
    drop = Dropout(0.4)
    y, z = drop(x), drop.add(residual, x)
    assert y.dtype == dtype and z.dtype == torch.float32
    factor = torch.where(y == 0, 0, 1 / 0.6).to(dtype)
    torch.testing.assert_close(y, x * factor)
    torch.rand(3)
    grad = torch.randn(5, 7, 30)
    (got,) = torch.autograd.grad(y, x, grad.to(dtype))
    torch.testing.assert_close(got, grad.to(dtype) * factor)
    got, through = torch.autograd.grad(z, [x, residual], grad.mT.contiguous().mT)
    torch.testing.assert_close(got, (grad * torch.where(z == residual, 0, 1 / 0.6)).to(dtype))
    assert torch.equal(through, grad)


def test_elements_are_kept_independently():
    """Of neighbours, of rows below each other, and of two calls, both are kept as often as chance would have it."""
    torch.manual_seed(0)
    one, other = (Dropout(0.2)(torch.ones(4000, 256)).flatten() > 0 for _ in range(2))
    pairs = {"one": (one, one), "two": (one, other)} | {n: (one[n:], one[:-n]) for n in (1, 2, 256, 512, 65536)}
    for name, (a, b) in pairs.items():
        share = 0.8 if name == "one" else 0.64
        assert (a & b).double().mean().item() == pytest.approx(share, abs=5 * (share * (1 - share) / len(a)) ** 0.5)


def test_the_generator_of_torch_decides():
    x, drop = torch.ones(3, 100, 10), Dropout(0.5)
    torch.manual_seed(3)
    first, second = drop(x), drop(x)
    torch.manual_seed(3)
    assert torch.equal(drop(x), first) and torch.equal(drop(x), second) and not torch.equal(first, second)


def test_any_number_of_threads(threads, monkeypatch):
    monkeypatch.setattr(choice, "SMALL", 1)
    x, results = torch.randn(9000), []
    for number in (1, 2, 3):
        threads(number)
        results.append(cpu.dropout_apply(x, None, 0.1, 5, torch.float32))
    assert all(torch.equal(result, results[0]) for result in results)


def test_what_torch_computes(monkeypatch):
    """No dropout, all of it, float64, and other devices."""
    x = torch.randn(2, 3, 4)
    monkeypatch.setattr(cpu, "dropout", None)
    assert torch.equal(Dropout(0.0)(x), x) and torch.equal(Dropout(0.5).eval()(x), x)
    assert not Dropout(1.0)(x).any()
    assert Dropout(0.5).eval().add(x, x).equal(2 * x) and Dropout(0.5)(x.double()).dtype == torch.float64
    assert Dropout(0.5)(x.to("meta")).is_meta and Dropout(0.5)(torch.empty(0)).shape == (0,)
    monkeypatch.setenv("LM_BACKEND", "portable")
    torch.manual_seed(1)
    got = Dropout(0.5)(x)
    torch.manual_seed(1)
    assert torch.equal(got, nn.functional.dropout(x, 0.5))


def test_a_probability_that_rounds_to_one_drops_nearly_all():
    assert Dropout(1 - 2**-40)(torch.ones(2, 3, 4)).count_nonzero() == 0


def test_a_residual_of_another_type_or_shape_is_added_by_torch():
    x = torch.ones(2, 3, 4, dtype=torch.bfloat16)
    assert Dropout(0.5).add(x, x).dtype == torch.bfloat16 and Dropout(0.5).add(x.double(), x).dtype == torch.float64
    assert (
        not Dropout(0.5).add(torch.zeros(4), x).float().sub(torch.tensor([0.0, 2.0])[:, None, None, None]).prod(0).any()
    )
