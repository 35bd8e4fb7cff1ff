"""minGRU and minLSTM against the equations of the paper, one step after the other."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from lm.mixers import MIXERS
from tests.mixers.helpers import BATCH, WIDTH, assert_equal, convolved, make, normal

OPTIONS = [
    {},
    {"convolution": 0, "expansion": 1.0},
    {"convolution": 2, "expansion": 1.5, "gate_bias": 0.7},
]


def g(x: Tensor) -> Tensor:
    return torch.where(x >= 0, x + 0.5, torch.sigmoid(x))


def gates(name: str, projected: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The shares of the past and of the new candidate (sections 3.1 and 3.2)."""
    if name == "mingru":
        z = torch.sigmoid(projected[0])
        return 1 - z, z
    f, i = torch.sigmoid(projected[0]), torch.sigmoid(projected[1])
    return f / (f + i), i / (f + i)


def loop(name: str, mixer, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    h, *past = state
    x = convolved(mixer, x, past[0]) if past else x
    outputs = []
    for x_t in x.unbind(1):
        projected = linear(x_t, mixer.projection.weight, mixer.projection.bias).split(h.shape[-1], dim=-1)
        keep, take = gates(name, projected)
        h = keep * h + take * g(projected[-1])
        outputs.append(h if h.shape[-1] == WIDTH else linear(h, mixer.down.weight, mixer.down.bias))
    return torch.stack(outputs, 1), h


@pytest.mark.parametrize("name", ["mingru", "minlstm"])
@pytest.mark.parametrize("options", OPTIONS, ids=["default", "plain", "others"])
def test_equals_the_loop(name, options):
    mixer, x = make(name, **options), normal(BATCH, 20, WIDTH)
    _, state = mixer(normal(BATCH, 5, WIDTH))
    y, last = mixer(x, state)
    expected, h = loop(name, mixer, x, state)
    assert_equal(y, expected)
    assert_equal(last[0], h)
    if len(last) > 1:
        assert_equal(last[1], torch.cat([state[1], x], 1)[:, -(mixer.convolution.size - 1) :])


@pytest.mark.parametrize("name", ["mingru", "minlstm"])
def test_expansion_is_the_hidden_width(name):
    mixer = MIXERS[name](WIDTH, expansion=2.5)
    assert mixer.init_state(3)[0].shape == (3, 30)
    assert mixer.projection.out_features == {"mingru": 2, "minlstm": 3}[name] * 30 and mixer.down.in_features == 30
    assert MIXERS[name](WIDTH).hidden == 2 * WIDTH
    assert not list(MIXERS[name](WIDTH, expansion=1.0).down.parameters()), "no down-projection"


@pytest.mark.parametrize("name", ["mingru", "minlstm"])
def test_convolution_is_its_size(name):
    assert MIXERS[name](WIDTH).convolution.weight.shape == (4, WIDTH)
    assert MIXERS[name](WIDTH, convolution=7).init_state(2)[1].shape == (2, 6, WIDTH)
    assert MIXERS[name](WIDTH, convolution=0).convolution is None


@pytest.mark.parametrize("bias", [None, 2.0, -1.0])
def test_gate_bias_of_mingru_is_the_log_odds_of_keeping(bias):
    """For an input of zero: h_1 = keep h_0 + (1 - keep) g(0), and g(0) = 1/2."""
    mixer = MIXERS["mingru"](WIDTH, convolution=0, expansion=1.0, **({} if bias is None else {"gate_bias": bias}))
    _, (h,) = mixer(torch.zeros(1, 1, WIDTH), (torch.full((1, WIDTH), 10.0),))
    keep = 1 / (1 + math.exp(-(bias or 0.0)))
    torch.testing.assert_close(h, torch.full((1, WIDTH), keep * 10 + (1 - keep) * 0.5))


@pytest.mark.parametrize("bias", [None, 2.0, -1.0])
def test_gate_bias_of_minlstm_is_the_forget_gates(bias):
    """For an input of zero, f = sigmoid(bias) and i = 1/2; the state keeps f / (f + i)."""
    mixer = MIXERS["minlstm"](WIDTH, convolution=0, expansion=1.0, **({} if bias is None else {"gate_bias": bias}))
    _, (h,) = mixer(torch.zeros(1, 1, WIDTH), (torch.full((1, WIDTH), 10.0),))
    f = 1 / (1 + math.exp(-(bias or 0.0)))
    keep = f / (f + 0.5)
    torch.testing.assert_close(h, torch.full((1, WIDTH), keep * 10 + (1 - keep) * 0.5))


@pytest.mark.parametrize("name", ["mingru", "minlstm"])
def test_all_other_biases_start_at_zero(name):
    mixer = MIXERS[name](WIDTH, gate_bias=3.0)
    assert mixer.projection.bias[: 2 * WIDTH].abs().tolist() == [3.0] * 2 * WIDTH
    assert not mixer.projection.bias[2 * WIDTH :].any()
