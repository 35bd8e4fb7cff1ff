"""Attention against a quadratic loop; rotary positions as products of complex numbers."""

import cmath
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from lm.mixers import MIXERS
from lm.mixers.attention import rotate, rotation
from tests.mixers.helpers import BATCH, WIDTH, assert_equal, make, normal


def heads_of(mixer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, T, H, N) of positions 0, 1, ...: normalised, scaled and rotated, or learned."""
    if mixer.learned is not None:
        x = x + torch.stack([mixer.learned[t % mixer.window] for t in range(x.shape[1])])
    q, k, v = (part.unflatten(-1, (mixer.heads, -1)) for part in linear(x, mixer.query_key_value.weight).chunk(3, -1))
    if mixer.learned is not None:
        return q, k, v
    rotated = []
    for part, scale in ((q, mixer.query_scale), (k, mixer.key_scale)):
        part = part / torch.sqrt(part.square().mean(-1, keepdim=True) + torch.finfo(part.dtype).eps) * scale
        N = part.shape[-1]
        frequencies = [10000 ** (-2 * j / N) for j in range(N // 2)]
        turns = [[cmath.exp(1j * t * f) for f in frequencies] for t in range(x.shape[1])]
        z = torch.complex(part[..., : N // 2], part[..., N // 2 :])
        z = z * torch.tensor(turns, dtype=torch.complex128)[:, None]
        rotated.append(torch.cat([z.real, z.imag], dim=-1))
    return *rotated, v


def quadratic(mixer, x: Tensor) -> Tensor:
    """Every position attends to itself and the `window - 1` positions before it."""
    q, k, v = heads_of(mixer, x)
    outputs = []
    for t in range(x.shape[1]):
        seen = slice(max(0, t - mixer.window + 1), t + 1)
        weight = torch.softmax(torch.einsum("bhn,bshn->bhs", q[:, t], k[:, seen]) / math.sqrt(q.shape[-1]), dim=-1)
        y = torch.einsum("bhs,bshn->bhn", weight, v[:, seen]).flatten(1)
        outputs.append(linear(y, mixer.output.weight))
    return torch.stack(outputs, 1)


@pytest.mark.parametrize(
    "options",
    [{"heads": 3}, {"heads": 1, "window": 7}, {"heads": 2, "window": 1}, {"window": 7, "positions": "learned"}],
    ids=str,
)
def test_equals_the_quadratic_form(options):
    """In one piece, in two, and step by step."""
    mixer, x = make("attention", **options), normal(BATCH, 20, WIDTH)
    expected = quadratic(mixer, x)
    assert_equal(mixer(x)[0], expected)
    first, state = mixer(x[:, :9])
    second, state = mixer(x[:, 9:-1], state)
    last, _ = mixer.step(x[:, -1], state)
    assert_equal(torch.cat([first, second, last[:, None]], dim=1), expected)


@pytest.mark.parametrize("window", [1, 2, 5])
def test_the_window_is_exactly_as_long_as_asked(window):
    """A change at position 10 is seen at position 10 and the `window - 1` positions after it, and by no other."""
    mixer, x = make("attention", window=window), normal(1, 20, WIDTH)
    changed = x.clone()
    changed[:, 10] += 1
    ys = []
    for inputs in (x, changed):
        y, state = mixer(inputs[:, :12])
        rest = [y]
        for x_t in inputs[:, 12:].unbind(1):
            y, state = mixer.step(x_t, state)
            rest.append(y[:, None])
        ys.append(torch.cat(rest, dim=1))
    differs = (ys[0] != ys[1]).any(-1)[0].tolist()
    assert [t for t, different in enumerate(differs) if different] == list(range(10, 10 + window))
    assert [part.shape[1:2] for part in state[:2]] == [(window,)] * 2


def test_rotation_of_distant_positions():
    """To the last digits of float32 after ten million characters, where float32 angles would be off by a third."""
    position = 10_000_000
    cos, sin = rotation(torch.tensor([[position]]), torch.zeros(8))
    for j in range(4):
        turned = cmath.exp(1j * position * 10000 ** (-2 * j / 8))
        assert complex(cos[0, 0, 0, j], sin[0, 0, 0, j]) == pytest.approx(turned, abs=1e-6)


def test_rotate_by_a_right_angle():
    """Channel j is paired with channel j + N / 2: (x, y) -> (-y, x)."""
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])[None, None, None]
    turned = rotate(x, torch.tensor([[0.0, 1.0], [1.0, 0.0]])[:, None, None, None])
    assert turned.flatten().tolist() == [-3.0, 2.0, 1.0, 4.0]


def test_state():
    """The newest keys and values, zeros before the first, and the next position."""
    mixer, x = make("attention", heads=2, window=6), normal(BATCH, 4, WIDTH)
    keys, values, position = mixer(x)[1]
    _, k, v = heads_of(mixer, x)
    assert_equal(keys, torch.cat([torch.zeros_like(k[:, :2]), k], dim=1))
    assert_equal(values, torch.cat([torch.zeros_like(v[:, :2]), v], dim=1))
    assert position.tolist() == [4] * BATCH and position.dtype == torch.int64
    initial = mixer.init_state(3)
    assert [part.shape for part in initial] == [(3, 6, 2, 6), (3, 6, 2, 6), (3,)] and not any(p.any() for p in initial)
    assert initial[2].dtype == torch.int64


@pytest.mark.parametrize("T", [1, 5, 6, 7, 13])
def test_state_has_a_row_for_each_position_of_the_window(T):
    mixer, x = make("attention", heads=2, window=6), normal(BATCH, T, WIDTH)
    _, _, v = heads_of(mixer, x)
    _, values, position = mixer(x)[1]
    assert_equal(values, torch.cat([v.new_zeros(BATCH, 6, 2, WIDTH // 2), v], dim=1)[:, -6:])
    assert position.tolist() == [T] * BATCH


@pytest.mark.parametrize(
    ("width", "heads"), [(2, 1), (32, 1), (64, 2), (96, 3), (104, 2), (128, 4), (130, 1), (250, 5)]
)
def test_default_heads(width, heads):
    """About width / 32, so that each has an even number of channels."""
    assert MIXERS["attention"](width).heads == heads


def test_heads_of_odd_size_are_refused():
    with pytest.raises(ValueError, match="width 12 cannot be cut into 4 heads of even size"):
        MIXERS["attention"](12, heads=4)
    with pytest.raises(ValueError, match="width 7 cannot be cut into 1 heads of even size"):
        MIXERS["attention"](7)


def test_initial_scales_are_one():
    mixer = MIXERS["attention"](64, heads=4)
    assert mixer.query_scale.tolist() == mixer.key_scale.tolist() == [1.0] * 16
    assert mixer.window == 256 and mixer.query_key_value.bias is None and mixer.output.bias is None


def test_flops():
    """Two for each weight; per position seen, 2 * width for its logits and 2 * width for its value, on average over a
    causal triangle half of the context, or of the window."""
    mixer = MIXERS["attention"](WIDTH, window=100)
    assert mixer.flops(40) == 2 * 4 * WIDTH**2 + 20 * 4 * WIDTH
    assert mixer.flops(1000) == 2 * 4 * WIDTH**2 + 50 * 4 * WIDTH
