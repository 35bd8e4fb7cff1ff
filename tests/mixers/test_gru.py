"""GRU and LSTM against their equations, one step after the other; all four implementations."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from lm.mixers import MIXERS
from tests.mixers.helpers import BATCH, WIDTH, assert_equal, make, normal

NAMES = ["gru", "lstm", "gru_reference", "lstm_reference"]
GATES = {"gru": "rzn", "lstm": "ifgo"}


def weights(mixer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W (gates * H, D), U (gates * H, H) and their biases."""
    if hasattr(mixer, "cell"):
        cell = mixer.cell
        return cell.weight_ih_l0, cell.weight_hh_l0, cell.bias_ih_l0, cell.bias_hh_l0
    return mixer.input.weight, mixer.recurrent.weight, mixer.input.bias, mixer.recurrent.bias


def loop(name: str, mixer, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    W, U, b_w, b_u = weights(mixer)
    outputs = []
    for x_t in x.unbind(1):
        w = linear(x_t, W, b_w).split(state[0].shape[-1], dim=-1)
        u = linear(state[0], U, b_u).split(state[0].shape[-1], dim=-1)
        if name.startswith("gru"):
            r, z = torch.sigmoid(w[0] + u[0]), torch.sigmoid(w[1] + u[1])
            n = torch.tanh(w[2] + r * u[2])
            state = ((1 - z) * n + z * state[0],)
        else:
            i, f, g, o = (a + b for a, b in zip(w, u, strict=True))
            c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
            state = (torch.sigmoid(o) * torch.tanh(c), c)
        h = state[0]
        outputs.append(h if h.shape[-1] == WIDTH else linear(h, mixer.down.weight, mixer.down.bias))
    return torch.stack(outputs, 1), state


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"expansion": 1.0, "gate_bias": 0.3}], ids=["default", "plain"])
def test_equals_the_loop(name, options):
    mixer, x = make(name, **options), normal(BATCH, 9, WIDTH)
    _, state = mixer(normal(BATCH, 5, WIDTH))
    y, last = mixer(x, state)
    expected, end = loop(name, mixer, x, state)
    for got, want in zip((y, *last), (expected, *end), strict=True):
        assert_equal(got, want)
    stepped, last = mixer.step(x[:, 0], state)
    expected, end = loop(name, mixer, x[:, :1], state)
    for got, want in zip((stepped, *last), (expected[:, 0], *end), strict=True):
        assert_equal(got, want)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bias", [None, -2.0])
def test_gate_bias(name, bias):
    """Of the GRU's z, by default 0, and the LSTM's f, by default 1: both keep the past. All other biases are zero."""
    mixer = MIXERS[name](WIDTH, **({} if bias is None else {"gate_bias": bias}))
    _, _, b_w, b_u = weights(mixer)
    kind = name.split("_")[0]
    for gate, part in zip(GATES[kind], (b_w + b_u).chunk(len(GATES[kind])), strict=True):
        default = 1.0 if kind == "lstm" else 0.0
        expected = (default if bias is None else bias) if gate == {"gru": "z", "lstm": "f"}[kind] else 0.0
        assert part.tolist() == [expected] * 2 * WIDTH


@pytest.mark.parametrize("name", NAMES)
def test_a_large_gate_bias_keeps_the_past(name):
    """The last tensor of the state, the GRU's h or the LSTM's c, stays as it is for an input of zero."""
    torch.manual_seed(0)
    mixer, state = MIXERS[name](WIDTH, gate_bias=30.0), MIXERS[name](WIDTH).init_state(1)
    state = (*state[:-1], torch.full_like(state[-1], 0.25))
    with torch.no_grad():
        for p in weights(mixer)[:2]:
            p.mul_(0.01)
    _, after = mixer(torch.zeros(1, 1, WIDTH), state)
    torch.testing.assert_close(after[-1], state[-1], rtol=0, atol=0.02 if "lstm" in name else 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_initial_weights(name):
    """The standard deviation of W is 1 / sqrt(D), that of U 1 / sqrt(H); those of a reference are linear layers, which
    the model initialises in the same way."""
    torch.manual_seed(0)
    mixer = MIXERS[name](64, expansion=4.0)
    W, U, _, _ = weights(mixer)
    if not name.endswith("reference"):
        assert W.std().item() == pytest.approx(1 / 8, rel=0.02) and U.std().item() == pytest.approx(1 / 16, rel=0.02)
    assert W.shape == ({"g": 3, "l": 4}[name[0]] * 256, 64) and U.shape[1] == 256
    assert all(part.shape == (5, 256) and not part.any() for part in mixer.init_state(5))
    assert len(mixer.init_state(5)) == (2 if name.startswith("lstm") else 1)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_autocast_keeps_the_cell_in_float32(name):
    """A state in bfloat16, with 8 bits, would not follow a slow gate."""
    mixer, x = make(name).float(), torch.randn(BATCH, 40, WIDTH)
    _, exact = mixer(x)
    with torch.autocast("cpu", torch.bfloat16):
        _, state = mixer(x)
    for got, want in zip(state, exact, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
