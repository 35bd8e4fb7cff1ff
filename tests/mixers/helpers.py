"""Mixers with random weights, for comparison with loops written in the tests."""

import torch
from torch import Tensor

from lm.mixers import MIXERS, Mixer

WIDTH, BATCH = 12, 2


def make(name: str, **options) -> Mixer:
    """A mixer in float64 whose weights are all random, so that none is zero or one."""
    torch.manual_seed(0)
    mixer = MIXERS[name](WIDTH, **options).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p += 0.2 * torch.randn_like(p)
    return mixer


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def assert_equal(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def convolved(mixer: Mixer, x: Tensor, past: Tensor) -> Tensor:
    """The causal convolution of x (B, T, D) after the inputs `past` (B, size - 1, D), by torch's own conv1d."""
    weight, bias = mixer.convolution.weight, mixer.convolution.bias  # (size, D), (D,)
    padded = torch.cat([past, x], dim=1).transpose(1, 2)
    return torch.conv1d(padded, weight.T[:, None], bias, groups=x.shape[-1]).transpose(1, 2)
