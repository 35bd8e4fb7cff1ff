"""The laws of lm/mixers/base.py, for every mixer."""

import contextlib

import pytest
import torch

from lm.config.options import MixerOptions, ModelConfig
from lm.mixers import MIXERS
from lm.model import LanguageModel

WIDTH, BATCH = 32, 2
CASES = {
    "mingru": ("mingru", {}),
    "mingru plain": ("mingru", {"convolution": 0, "expansion": 1.0}),
    "minlstm": ("minlstm", {}),
    "minlstm plain": ("minlstm", {"convolution": 0, "expansion": 1.5, "gate_bias": 1.0}),
    "attention": ("attention", {}),
    "attention window": ("attention", {"window": 50, "heads": 4}),
    "attention learned": ("attention", {"window": 50, "positions": "learned"}),
    "mamba": ("mamba", {}),
    "mamba plain": ("mamba", {"convolution": 0, "expansion": 1.0, "d_state": 3}),
    "s4d": ("s4d", {}),
    "s4d small": ("s4d", {"d_state": 2}),
    "gru": ("gru", {}),
    "gru plain": ("gru", {"expansion": 1.0, "gate_bias": 1.0}),
    "lstm": ("lstm", {}),
    "gru_reference": ("gru_reference", {}),
    "lstm_reference": ("lstm_reference", {"expansion": 1.0}),
}
CASES |= {name: (name, {}) for name in MIXERS if name not in CASES}
LENGTHS = (1, 2, 63, 257, 1000)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
every_mixer = pytest.mark.parametrize("case", CASES)
every_type = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def make(case: str) -> torch.nn.Module:
    """A mixer that starts as it would in training, every weight a little off so that none is zero or one."""
    torch.manual_seed(0)
    name, options = CASES[case]
    mixer = MIXERS[name](WIDTH, **options)
    with torch.no_grad():
        for p in mixer.parameters():
            p += WIDTH**-0.5 * torch.randn_like(p)
    return mixer


def precision(dtype: torch.dtype):
    """Autocast without its cache of weights, in which a weight used T times would sum its gradient in bfloat16."""
    return torch.autocast("cpu", dtype, cache_enabled=False) if dtype != torch.float32 else contextlib.nullcontext()


def assert_near(actual, expected, dtype=torch.float32) -> None:
    actual, expected = actual.double(), expected.double()
    assert actual.isfinite().all()
    error = (actual - expected).norm() / expected.norm().clamp(min=1e-6)
    assert error <= TOLERANCE[dtype], f"relative error {error:.2e}"


def some_state(mixer, length: int = 30):
    """A state that is not the initial one, ready for gradients."""
    _, state = mixer(torch.randn(BATCH, length, WIDTH))
    return tuple(s.detach().requires_grad_() if s.is_floating_point() else s for s in state)


def gradients(mixer, x, state, y, last):
    """Of a random-weighted sum of the outputs and of the last state."""
    torch.manual_seed(1)
    total = (y.float() * torch.randn(y.shape)).sum()
    total = total + sum((s.float() * torch.randn(s.shape)).sum() for s in last if s.is_floating_point())
    inputs = [x, *(s for s in state if s.is_floating_point()), *mixer.parameters()]
    return torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)


def fold(mixer, x, state):
    """`step` over a sequence."""
    ys = []
    for x_t in x.unbind(1):
        y, state = mixer.step(x_t, state)
        ys.append(y)
    return torch.stack(ys, dim=1), state


LONG_IN_HALF = pytest.param(1000, torch.bfloat16, marks=pytest.mark.slow)


@every_mixer
@pytest.mark.parametrize(
    ("T", "dtype"),
    [(T, dtype) for dtype in TOLERANCE for T in LENGTHS if (T, dtype) != LONG_IN_HALF.values] + [LONG_IN_HALF],
)
def test_forward_equals_folding_step(case, dtype, T):
    mixer = make(case)
    x, state = torch.randn(BATCH, T, WIDTH, requires_grad=True), some_state(mixer)
    with precision(dtype):
        y, last = mixer(x, state)
        y_folded, last_folded = fold(mixer, x, state)
    assert_near(y, y_folded, dtype)
    for a, b in zip(last, last_folded, strict=True):
        assert_near(a, b, dtype)
    folded = gradients(mixer, x, state, y_folded, last_folded)
    for a, b in zip(gradients(mixer, x, state, y, last), folded, strict=True):
        assert_near(a, b, dtype)


@every_mixer
def test_a_float64_model_computes_in_float64(case):
    """`forward`, and `step` from its state, from the initial one and from one in float32."""
    mixer = make(case).double()
    x = torch.randn(BATCH, 9, WIDTH, dtype=torch.float64)
    y, last = mixer(x)
    for narrow in (False, True):
        state = mixer.init_state(BATCH)
        state = tuple(s.float() if narrow and s.is_floating_point() else s for s in state)
        folded, stepped = fold(mixer, x, state)
        assert folded.dtype == y.dtype == torch.float64
        for got, want in zip((folded, *stepped), (y, *last), strict=True):
            assert got.dtype == want.dtype and got.dtype != torch.float32
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@every_mixer
@every_type
@pytest.mark.parametrize("cut", (1, 62, 200))
def test_splitting_a_sequence_changes_nothing(case, dtype, cut):
    mixer = make(case)
    x, state = torch.randn(BATCH, 257, WIDTH), some_state(mixer)
    with torch.no_grad(), precision(dtype):
        whole, last = mixer(x, state)
        first, state = mixer(x[:, :cut], state)
        second, state = mixer(x[:, cut:], state)
    assert_near(torch.cat([first, second], dim=1), whole, dtype)
    for a, b in zip(state, last, strict=True):
        assert_near(a, b, dtype)


@every_mixer
@every_type
def test_initial_state_is_the_default(case, dtype):
    mixer = make(case)
    x = torch.randn(BATCH, 70, WIDTH)
    with torch.no_grad(), precision(dtype):
        assert_near(mixer(x, mixer.init_state(BATCH))[0], mixer(x)[0], dtype)


@every_mixer
@every_type
@pytest.mark.parametrize("t", (1, 40, 99))
def test_the_past_does_not_see_the_future(case, dtype, t):
    mixer = make(case)
    x = torch.randn(BATCH, 100, WIDTH)
    changed = x.clone()
    changed[:, t] += 1
    with torch.no_grad(), precision(dtype):
        before, after = mixer(x)[0], mixer(changed)[0]
    assert_near(after[:, :t], before[:, :t], dtype)
    assert not torch.allclose(after[:, t], before[:, t], atol=1e-3)


@every_mixer
@every_type
def test_rows_do_not_see_each_other(case, dtype):
    mixer = make(case)
    x = torch.randn(3, 65, WIDTH)
    with torch.no_grad(), precision(dtype):
        together = mixer(x)[0]
        alone = torch.cat([mixer(row[None])[0] for row in x])
    assert_near(together, alone, dtype)


@every_mixer
def test_state_is_a_tuple_of_batch_first_real_tensors(case):
    mixer = make(case)
    state = mixer.init_state(BATCH)
    _, after = mixer(torch.randn(BATCH, 5, WIDTH))
    _, stepped = mixer.step(torch.randn(BATCH, WIDTH), state)
    for s in (state, after, stepped):
        assert isinstance(s, tuple)
        assert [(t.shape, t.dtype) for t in s] == [(t.shape, t.dtype) for t in state]
        assert all(t.shape[0] == BATCH and not t.is_complex() for t in s)


@every_mixer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_of_half_precision(case, dtype):
    """Outputs have the type of the weights, as have a convolution's inputs, keys and values; other states float32."""
    name, options = CASES[case]
    expected = [torch.float32] * (2 if name.startswith("lstm") else 1)
    expected += [dtype] if name in ("mingru", "minlstm", "mamba") and options.get("convolution", 4) else []
    expected = [dtype, dtype, torch.int64] if name == "attention" else expected
    mixer, x = make(case).to(dtype), torch.randn(BATCH, 5, WIDTH).to(dtype)
    with torch.no_grad():
        y, last = mixer(x)
        y_folded, folded = fold(mixer, x, mixer.init_state(BATCH))
    assert y.dtype == y_folded.dtype == dtype
    assert_near(y_folded, y, torch.bfloat16)
    for state in (mixer.init_state(BATCH), last, folded):
        assert [part.dtype for part in state] == expected


@every_mixer
def test_torchs_default_device_is_not_that_of_the_states(case):
    mixer, x = make(case), torch.randn(BATCH, 60, WIDTH)
    with torch.no_grad(), torch.device("meta"):
        state = mixer.init_state(BATCH)
        y, last = mixer(x)
        y_t, after = mixer.step(x[:, 0], state)
    assert {t.device.type for t in (y, y_t, *state, *last, *after)} == {"cpu"}


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("width", (2, 6, 130))
def test_any_even_width_with_defaults_alone(name, width):
    y, _ = MIXERS[name](width)(torch.randn(1, 3, width))
    assert y.shape == (1, 3, width)


def test_mamba_keeps_no_states_for_backward():
    mixer, x = MIXERS["mamba"](WIDTH), torch.randn(BATCH, 256, WIDTH)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        mixer(x)
    assert max(sizes) <= 2 * x.numel()  # such as u (B, T, E); the states (B, T, N, E) would be 16 times that


# The laws that need a whole model; the hybrids mix them.

MODELS = {case: (CASES[case][0], CASES[case][1]) for case in CASES} | {
    "hybrid": (["mingru", "attention"], {}),
    "hybrid of state spaces": (["s4d", "mamba"], {"d_state": 8}),
}
every_model = pytest.mark.parametrize("case", MODELS)


def make_model(case: str, vocabulary: int = 30) -> LanguageModel:
    torch.manual_seed(0)
    mixer, options = MODELS[case]
    config = ModelConfig(mixer=mixer, options=MixerOptions(**options), width=WIDTH, layers=2, residual_init=1.0)
    return LanguageModel(vocabulary, config)


@every_model
def test_greedy_decoding_equals_full_recomputation(case):
    model = make_model(case).eval()
    torch.nn.init.normal_(model.head.weight)
    ids = list(range(5))
    with torch.no_grad():
        logits, state = model(torch.tensor([ids]))
        logits, decoded = logits[:, -1], list(ids)
        for _ in range(80):
            decoded.append(int(logits.argmax()))
            logits, state = model.step(torch.tensor(decoded[-1:]), state)
            ids.append(int(model(torch.tensor([ids]))[0][0, -1].argmax()))
    assert decoded == ids
    assert len(set(ids)) > 5


@every_model
def test_one_batch_can_be_overfitted(case):
    model = make_model(case)
    ids = torch.randint(0, 30, (4, 33))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(120):
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1])[0].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@every_model
def test_initial_loss_is_that_of_guessing(case):
    model = make_model(case)
    ids = torch.randint(0, 30, (4, 33))
    loss = torch.nn.functional.cross_entropy(model(ids[:, :-1])[0].flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(torch.tensor(30.0).log().item(), abs=1e-6)
