"""S4D against its equations, one step after the other in complex numbers."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from lm.mixers import MIXERS, s4d
from tests.mixers.helpers import BATCH, WIDTH, assert_equal, make, normal


def loop(mixer, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Zero-order hold of h' = A h + u, y = 2 Re(C h) + skip u (arXiv 2206.11893), then GELU and a gated projection."""
    half = state.shape[-1] // 2
    h = torch.complex(state[..., :half], state[..., half:])
    A = torch.complex(-torch.exp(mixer.A_real_log), mixer.A_imag)
    dt = torch.exp(mixer.log_dt)[:, None]
    C = torch.complex(mixer.C[:, :half], mixer.C[:, half:])
    outputs = []
    for x_t in x.unbind(1):
        h = torch.exp(dt * A) * h + x_t[..., None]
        y = 2 * (C * (torch.exp(dt * A) - 1) / A * h).real.sum(-1) + mixer.skip * x_t
        value, gate = linear(gelu(y), mixer.output.weight, mixer.output.bias).chunk(2, dim=-1)
        outputs.append(value * torch.sigmoid(gate))
    return torch.stack(outputs, 1), torch.cat([h.real, h.imag], dim=-1)


@pytest.mark.parametrize("d_state", [64, 2])
@pytest.mark.parametrize("T", [1, 50])
def test_equals_the_loop(monkeypatch, d_state, T):
    """In chunks of 16 steps, the last one shorter."""
    monkeypatch.setattr(s4d, "CHUNK", 16)
    mixer, x = make("s4d", d_state=d_state), normal(BATCH, T, WIDTH)
    _, state = mixer(normal(BATCH, 5, WIDTH))
    y, (last,) = mixer(x, state)
    expected, h = loop(mixer, x, state[0])
    assert_equal(y, expected)
    assert_equal(last, h)
    stepped, (last,) = mixer.step(x[:, 0], state)
    expected, h = loop(mixer, x[:, :1], state[0])
    assert_equal(stepped, expected[:, 0])
    assert_equal(last, h)


@pytest.mark.parametrize("T", [1, 2, 15, 512])
def test_powers_to_the_last_digits_of_float32(T):
    """Of numbers on the unit circle and within it, against Python's own."""
    a = torch.polar(torch.tensor([[1.0, 0.999], [0.5, 1.0]]), torch.tensor([[0.1, 3.0], [-2.0, 1.5]]))
    table = s4d.powers(a, T)
    assert table.shape == (2, 2, T + 1) and table.dtype == torch.complex64
    for i, j, t in itertools.product(range(2), range(2), range(T + 1)):
        exact = complex(a[i, j]) ** t
        assert abs(complex(table[i, j, t]) - exact) <= 2.5e-7 * abs(exact) + 1e-37


def test_initial_weights():
    """S4D-Lin: A = -1/2 + i pi n; C complex normal of variance 1; step sizes log-uniform in [0.001, 0.1]."""
    torch.manual_seed(0)
    mixer = MIXERS["s4d"](2048, d_state=6)
    assert mixer.A_real_log.exp().unique().tolist() == pytest.approx([0.5])
    torch.testing.assert_close(mixer.A_imag[5], torch.tensor([0.0, math.pi, 2 * math.pi]))
    dt = mixer.log_dt.exp()
    assert 1e-3 <= dt.min() < 1.02e-3 and 0.098 < dt.max() <= 0.1001
    assert mixer.log_dt.std().item() == pytest.approx(math.log(100) / 12**0.5, rel=0.05)
    assert mixer.C.var().item() == pytest.approx(0.5, rel=0.03) and abs(mixer.C.mean()) < 0.02
    assert mixer.skip.var().item() == pytest.approx(1.0, rel=0.1) and abs(mixer.skip.mean()) < 0.1


def test_options():
    assert MIXERS["s4d"](WIDTH).init_state(2)[0].shape == (2, WIDTH, 64)
    with pytest.raises(ValueError, match="d_state 7 must be even"):
        MIXERS["s4d"](WIDTH, d_state=7)


def test_flops():
    """Two for each weight of the output; per channel 10 log2(n) for two FFTs of n = twice the steps, 6 for the product
    of the spectra, and 2 for each number of state."""
    mixer = MIXERS["s4d"](WIDTH, d_state=6)
    assert mixer.flops(128) == pytest.approx(2 * 12 * 24 + 12 * (10 * 8 + 6 + 2 * 6))
    assert mixer.flops(4096) == mixer.flops(512) == pytest.approx(2 * 12 * 24 + 12 * (10 * 10 + 6 + 2 * 6))
