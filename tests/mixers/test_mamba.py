"""Mamba against its equations, one step after the other."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from lm.mixers import MIXERS
from tests.mixers.helpers import BATCH, WIDTH, assert_equal, convolved, make, normal

OPTIONS = [{}, {"convolution": 0, "expansion": 1.0, "d_state": 3}]


def loop(mixer, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Algorithm 2 of arXiv 2312.00752 and the block around it (section 3.4); h is (B, N, E)."""
    h, *past = state
    u, gate = linear(x, mixer.projection.weight).chunk(2, dim=-1)
    u = silu(convolved(mixer, u, past[0]) if past else u)
    A = -torch.exp(mixer.A_log)  # (N, E)
    rank = math.ceil(WIDTH / 16)
    outputs = []
    for u_t, gate_t in zip(u.unbind(1), gate.unbind(1), strict=True):
        selected = linear(u_t, mixer.selection.weight)
        step, B, C = selected[:, :rank], *selected[:, rank:].chunk(2, dim=-1)
        dt = torch.log(1 + torch.exp(linear(step, mixer.dt.weight, mixer.dt.bias)))
        h = torch.exp(dt[:, None] * A) * h + dt[:, None] * B[..., None] * u_t[:, None]
        y = torch.einsum("bn,bne->be", C, h) + mixer.skip * u_t
        outputs.append(linear(y * silu(gate_t), mixer.output.weight))
    return torch.stack(outputs, 1), h


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "plain"])
def test_equals_the_loop(options):
    mixer, x = make("mamba", **options), normal(BATCH, 40, WIDTH)
    _, state = mixer(normal(BATCH, 5, WIDTH))
    y, last = mixer(x, state)
    expected, h = loop(mixer, x, state)
    assert_equal(y, expected)
    assert_equal(last[0], h)
    stepped, last = mixer.step(x[:, 0], state)
    expected, h = loop(mixer, x[:, :1], state)
    assert_equal(stepped, expected[:, 0])
    assert_equal(last[0], h)


def test_options_are_sizes():
    mixer = MIXERS["mamba"](WIDTH, expansion=1.5, convolution=3, d_state=5)
    assert [part.shape for part in mixer.init_state(2)] == [(2, 5, 18), (2, 2, 18)]
    assert MIXERS["mamba"](WIDTH).init_state(2)[0].shape == (2, 16, 24)
    assert MIXERS["mamba"](40).rank == 3, "the step sizes' rank is the width over 16, rounded up"


def test_initial_weights():
    """Step sizes log-uniform in [0.001, 0.1], A from -1 to -N, skip 1, and uniform weights up to 1 / sqrt(fan-in)."""
    torch.manual_seed(0)
    mixer = MIXERS["mamba"](1024, d_state=3)
    dt = torch.log1p(torch.exp(mixer.dt.bias))
    assert 1e-3 <= dt.min() < 1.02e-3 and 0.098 < dt.max() <= 0.1001
    assert dt.log().mean().item() == pytest.approx(math.log(0.01), abs=0.1)
    assert dt.log().std().item() == pytest.approx(math.log(100) / 12**0.5, rel=0.05)
    torch.testing.assert_close(torch.exp(mixer.A_log[:, 7]), torch.tensor([1.0, 2.0, 3.0]))
    assert (mixer.skip == 1).all()
    for weight, bound in ((mixer.dt.weight, 64**-0.5), (mixer.convolution.weight, 0.5)):
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert weight.mean().item() == pytest.approx(0.0, abs=0.01)


def test_flops():
    """Two for each weight of a matrix, and 7 for each of the N * E numbers of state: exp(dt A) 2, B 1, h 2, C 2."""
    mixer = MIXERS["mamba"](WIDTH, d_state=5, convolution=4)  # E = 24, rank 1
    matrices = 12 * 48 + 4 * 24 + 24 * 11 + 1 * 24 + 24 * 12
    assert mixer.flops(1) == mixer.flops(99) == 2 * matrices + 7 * 5 * 24
