"""The native decoder against its slow twin, `LanguageModel.step`."""

import copy
import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from lm.config.options import MixerOptions, ModelConfig
from lm.files import UserError
from lm.model import LanguageModel
from lm.sampling import packed
from lm.sampling.packed import WEIGHTS, Packed, pack
from tests.commands import ROOT

pytestmark = pytest.mark.filterwarnings("error")
INF = float("inf")


def make(mixer="mingru", vocabulary=65, width=48, layers=2, mlp="relu2", **options):
    """A model in which no weight is zero or one."""
    torch.manual_seed(0)
    config = ModelConfig(mixer=mixer, width=width, layers=layers, mlp=mlp, options=MixerOptions(**options))
    model = LanguageModel(vocabulary, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5))
    return model


def random_state(model, batch):
    return tuple(tuple(torch.randn_like(part) for part in layer) for layer in model.init_state(batch))


def error(got, want):
    return ((got - want).norm() / want.norm().clamp_min(1e-30)).item()


def close(got, want, tolerance=1e-5):
    """Logits and states, relative to the norm of each."""
    parts = zip(packed.flat(got[1]), packed.flat(want[1]), strict=True)
    return error(got[0], want[0]) < tolerance and all(error(x, y) < tolerance or x.numel() == 0 for x, y in parts)


MODELS = {
    "mingru": {},
    "minlstm": {"mixer": "minlstm"},
    "hybrid": {"mixer": ["mingru", "minlstm", "mingru"], "layers": 3, "convolution": 0},
    "gelu": {"mlp": "gelu"},
    "swiglu": {"mlp": "swiglu", "width": 50},
    "odd": {"width": 35, "vocabulary": 3, "expansion": 1.3, "convolution": 3},
    "no down-projection": {"mixer": "minlstm", "expansion": 1.0, "convolution": 1},
    "wide": {"width": 130, "vocabulary": 200, "expansion": 3.0, "convolution": 7, "layers": 1},
    "tiny": {"width": 2, "vocabulary": 1, "layers": 1, "convolution": 2, "gate_bias": 3.0},
}


@torch.inference_mode()
@pytest.mark.parametrize("size", [0.0, 1e-4, 1e4])
def test_the_norm_of_small_and_large_numbers(size):
    """An embedding of which the norm's epsilon makes most, or nothing."""
    model = make()
    model.embedding.weight *= size
    state, ids = random_state(model, 2), torch.tensor([1, 2])
    assert close(Packed(model).step(ids, state), model.step(ids, state))


@torch.inference_mode()
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_steps_equal_the_slow_twin(options):
    model = make(**options)
    fast = Packed(model)
    for batch in (1, 3):
        ours = twins = random_state(model, batch)
        for _ in range(5):
            ids = torch.randint(model.embedding.num_embeddings, (batch,))
            (a, ours), (b, twins) = got, want = fast.step(ids, ours), model.step(ids, twins)
            assert close(got, want)
            assert a.shape == b.shape and [x.shape for x in packed.flat(ours)] == [x.shape for x in packed.flat(twins)]


@torch.inference_mode()
def test_large_and_small_activations():
    """Gates far out, where a sloppy exponential or erf would show."""
    for mlp, mixer in itertools.product(packed.MLPS, ("mingru", "minlstm")):
        model = make(mixer, mlp=mlp)
        for scale in (1e-3, 30.0):
            scaled = copy.deepcopy(model)
            for block in scaled.blocks:
                block.mixer.projection.weight.data *= scale
                block.mlp.up.weight.data *= scale
            state, ids = random_state(scaled, 4), torch.arange(4)
            got = Packed(scaled).step(ids, state)
            logits, after = scaled.double()(ids[:, None], double(state))
            assert close(got, (logits[:, 0], after))


def double(state):
    return tuple(tuple(part.double() for part in layer) for layer in state)


@torch.inference_mode()
@pytest.mark.parametrize("weights", WEIGHTS)
def test_rows_do_not_depend_on_the_batch(weights):
    model = make(width=40)
    fast = Packed(model, weights)
    ids, state = torch.randint(65, (100,)), random_state(model, 100)
    logits, after = fast.step(ids, state)
    for first, end in [(0, 1), (5, 7), (3, 10), (20, 84), (99, 100)]:
        some, then = fast.step(ids[first:end], tuple(tuple(p[first:end] for p in layer) for layer in state))
        assert torch.equal(some, logits[first:end])
        for x, y in zip(packed.flat(then), packed.flat(after), strict=True):
            assert torch.equal(x, y[first:end])


@torch.inference_mode()
def test_a_state_is_a_value():
    model = make()
    fast = Packed(model)
    state = random_state(model, 2)
    before = copy.deepcopy(state)
    first, ids = fast.step(torch.tensor([1, 2]), state), torch.tensor([1, 2])
    kept = copy.deepcopy(first)
    second = fast.step(ids, state)
    fast.step(ids, first[1])
    for now, then in zip(packed.flat(state), packed.flat(before), strict=True):
        assert torch.equal(now, then)
    assert torch.equal(first[0], kept[0]) and torch.equal(first[0], second[0])


@torch.inference_mode()
def test_states_are_exchanged_with_the_model():
    model = make("minlstm")
    fast = Packed(model)
    ids = torch.randint(65, (2, 40))
    _, from_model = model(ids[:, :20])
    a = fast.step(ids[:, 20], from_model)
    b = model.step(ids[:, 20], from_model)
    assert close(a, b)
    assert close(model(ids[:, 21:], a[1]), model(ids[:, 21:], b[1]))
    assert close(model.step(ids[:, 21], a[1]), fast.step(ids[:, 21], b[1]))


@torch.inference_mode()
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("mixer", ["mingru", "minlstm"])
def test_greedy_text_equals_recomputation(mixer, weights):
    fast = Packed(make(mixer), weights)
    ids = torch.randint(65, (1, 10))
    logits, state = fast.forward(ids)
    logits = logits[:, -1]
    for _ in range(60):
        ids = torch.cat([ids, logits.argmax(-1)[None]], dim=1)
        logits, state = fast.step(ids[:, -1], state)
        assert error(logits, fast.model(ids)[0][:, -1]) < 1e-5
    assert ids[0, 10:].tolist() == fast.model(ids)[0][0, 9:-1].argmax(-1).tolist()


@torch.inference_mode()
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_rounded_weights(options, weights):
    """Steps equal those of a plain model with the rounded weights, and these are near the exact ones."""
    model = make(**options)
    before = copy.deepcopy(model.state_dict())
    fast = Packed(model, weights)
    ids, state = torch.randint(model.embedding.num_embeddings, (3,)), random_state(model, 3)
    got = fast.step(ids, state)
    assert close(got, fast.model.step(ids, state))
    assert close(got, (fast.forward(ids[:, None], state)[0][:, 0], fast.forward(ids[:, None], state)[1]))
    assert not close(got, model.step(ids, state), 1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for exact, near in zip(packed.linears(model), packed.linears(fast.model), strict=True):
        largest = exact.weight.abs().amax(dim=1, keepdim=True)
        bound = exact.weight.abs() * 2**-8 if weights == "bfloat16" else largest / 127 * 0.501
        assert ((exact.weight - near.weight).abs() <= bound).all()


def test_int8_of_a_zero_channel():
    model = make(mlp="relu2")
    with torch.no_grad():
        model.head.weight[7].zero_()
    assert Packed(model, "int8").step(torch.tensor([1]), model.init_state(1))[0][0, 7] == 0


def test_the_weights_are_copied():
    model = make()
    fast = Packed(model)
    ids, state = torch.tensor([3]), model.init_state(1)
    before = fast.step(ids, state)[0]
    with torch.no_grad():
        model.head.weight.zero_()
    assert torch.equal(fast.step(ids, state)[0], before)


@pytest.mark.parametrize("ids", [[65], [-1], [2**40], [0, -(2**40)]])
def test_foreign_ids_are_refused(ids):
    fast = Packed(make())
    with pytest.raises(IndexError, match=r"not in 0 .. 64"):
        fast.step(torch.tensor(ids), fast.init_state(len(ids)))


@pytest.mark.parametrize(
    ("ids", "spoil"),
    [
        (torch.tensor([1, 2]), lambda h: h[:1]),
        (torch.tensor([1, 2]), lambda h: h[:, :-1]),
        (torch.tensor([1, 2]), lambda h: h.double()),
        (torch.tensor([1, 2]), lambda h: h.bfloat16()),
        (torch.tensor([[1], [2]]), lambda h: h),
        (torch.tensor([1, 2], dtype=torch.int32), lambda h: h),
        (torch.tensor([1, 2], device="meta"), lambda h: h),
        (torch.tensor([1, 2]), lambda h: h.to("meta")),
    ],
)
def test_wrong_shapes_and_types_are_refused(ids, spoil):
    fast = Packed(make())
    (h, past), *others = fast.init_state(2)
    with pytest.raises(ValueError):
        fast.step(ids, ((spoil(h), past), *others))
    with pytest.raises(ValueError):
        fast.step(ids[:, ...], tuple(others))


@torch.inference_mode()
def test_strided_inputs():
    """An expanded state and every second id: the kernel reads rows side by side."""
    model = make()
    fast = Packed(model)
    one = random_state(model, 1)
    many = tuple(tuple(part.expand(3, *part.shape[1:]) for part in layer) for layer in one)
    ids = torch.arange(6)[::2]
    assert close(fast.step(ids, many), model.step(ids, many))


@torch.inference_mode()
def test_writing_takes_the_first_of_equal_logits_and_none_of_no_probability():
    fast = Packed(make(vocabulary=6))
    logits = torch.tensor([[-INF, 1.0, 3.0, 3.0, -INF, 9.0]])  # the last is the unknown, which is never written
    for temperature, uniform, expected in ((0.0, 0.9, 2), (1.0, 0.0, 1), (1.0, 0.999999, 3)):
        number = torch.full((1, 1), uniform, dtype=torch.float64)
        ids, _, _ = fast.write(logits, fast.init_state(1), number, temperature)
        assert ids.item() == expected


@torch.inference_mode()
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 5.0])
def test_writing_is_choosing_and_stepping(temperature):
    fast = Packed(make())
    logits, state = fast.step(torch.tensor([1, 2, 3]), random_state(fast, 3))
    before = copy.deepcopy((logits, state))
    uniform = torch.rand(40, 3, dtype=torch.float64)
    uniform[0] = torch.tensor([0.0, 0.5, 1 - 2**-53])
    ids, last, after = fast.write(logits, state, uniform, temperature)
    for t in range(40):
        known = logits[:, :-1].double()
        if temperature == 0:
            chosen = known.argmax(-1)
        else:
            cumulative = ((known - known.amax(-1, keepdim=True)) / temperature).exp().cumsum(-1)
            chosen = (cumulative <= uniform[t, :, None] * cumulative[:, -1:]).sum(-1).clamp_max(63)
        assert torch.equal(ids[t], chosen)
        logits, state = fast.step(chosen, state)
    assert torch.equal(last, logits)
    assert all(torch.equal(x, y) for x, y in zip(packed.flat(after), packed.flat(state), strict=True))
    again = fast.write(*before, uniform, temperature)
    assert torch.equal(again[0], ids)


@torch.inference_mode()
@pytest.mark.parametrize("threads", [1, 2])
def test_written_rows_do_not_depend_on_the_batch(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    fast = Packed(make())
    state, uniform = random_state(fast, 64), torch.rand(30, 64, dtype=torch.float64)
    logits = torch.zeros(64, 65)
    ids = fast.write(logits, state, uniform, 0.8)[0]
    for i in (0, 13, 63):
        one = tuple(tuple(part[i : i + 1] for part in layer) for layer in state)
        assert torch.equal(fast.write(logits[:1], one, uniform[:, i : i + 1], 0.8)[0][:, 0], ids[:, i])


def test_writing_refuses_other_shapes_and_types():
    fast = Packed(make())
    logits, state, uniform = torch.zeros(2, 65), fast.init_state(2), torch.rand(3, 2, dtype=torch.float64)
    for arguments in [
        (logits[:1], state, uniform),
        (logits, state, uniform.float()),
        (logits.double(), state, uniform),
        (logits.to("meta"), state, uniform),
        (logits, state, uniform.to("meta")),
    ]:
        with pytest.raises(ValueError, match="expected"):
            fast.write(*arguments, 1.0)
    with pytest.raises(ValueError, match="expected a float32 state"):
        fast.write(logits, fast.init_state(1), uniform, 1.0)


def test_an_empty_batch():
    fast = Packed(make())
    logits, state = fast.step(torch.zeros(0, dtype=torch.int64), fast.init_state(0))
    assert logits.shape == (0, 65) and state[0][0].shape == (0, 96)


@pytest.mark.parametrize("mixer", ["attention", "gru", ["mingru", "mamba"]])
def test_other_mixers_stay_themselves(mixer):
    model = make(mixer)
    assert pack(model) is model
    with pytest.raises(UserError, match=r"int8 weights cannot be had: the mixer .* has no native step"):
        pack(model, "int8")


def test_other_types_stay_themselves():
    model = make().double()
    assert pack(model) is model
    with pytest.raises(UserError, match=r"torch.float64 on cpu, not float32 on a CPU"):
        pack(model, "bfloat16")


def test_other_norms_stay_themselves():
    model = make()
    model.norm = nn.LayerNorm(48)
    assert pack(model) is model


def test_unknown_weights():
    with pytest.raises(UserError, match=r"expected float32 or bfloat16 or int8, not int4"):
        pack(make(), "int4")


WITHOUT_A_COMPILER = """
import warnings
from lm.config.options import ModelConfig
from lm.files import UserError
from lm.model import LanguageModel
from lm.sampling.packed import pack

model = LanguageModel(65, ModelConfig(width=32, layers=1)).eval()
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    assert pack(model) is model and pack(model) is model
assert len(warned) == 1 and "no-such-compiler" in str(warned[0].message), warned
try:
    pack(model, "int8")
except UserError as error:
    assert str(error).startswith("int8 weights cannot be had: ") and "no-such-compiler" in str(error), error
    print("refused")
"""


def test_without_a_compiler_the_model_serves(tmp_path):
    changes = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "CC": str(tmp_path / "no-such-compiler")}
    words = [sys.executable, "-c", WITHOUT_A_COMPILER]
    ended = subprocess.run(words, cwd=ROOT, env=os.environ | changes, capture_output=True, text=True, timeout=120)
    assert (ended.stdout, ended.returncode) == ("refused\n", 0), ended.stderr


@pytest.mark.parametrize("weights", WEIGHTS)
def test_pack(weights):
    assert pack(make(), weights).weights == weights


@torch.inference_mode()
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_traces_equal_the_slow_twin(options):
    """Gates and states as plain torch computes them; logits and the last state as steps give them, to the bit."""
    model = make(**options)
    fast, start = Packed(model), random_state(model, 1)
    before, ids = copy.deepcopy(start), torch.randint(model.embedding.num_embeddings, (77,))
    trace = fast.trace(ids, start)
    state = start
    for t in range(77):
        logits, state = fast.step(ids[t : t + 1], state)
        assert torch.equal(trace.logits[t], logits[0])
        for h, layer in zip(trace.states, state, strict=True):
            assert torch.equal(h[t], layer[0][0])
    assert all(map(torch.equal, packed.flat(trace.state), packed.flat(state)))
    assert all(map(torch.equal, packed.flat(start), packed.flat(before)))
    for z, gates in zip(trace.gates, slow_gates(model, ids, start), strict=True):
        assert error(z, gates) < 1e-5


def slow_gates(model, ids, state):
    """z (T, hidden) of each layer, by the formulas of arXiv 2410.01201."""
    gates = []

    def keep(module, arguments, projection):
        mixer = mixers[module]
        *logits, _ = projection[0].chunk(mixer.gates + 1, dim=-1)
        gates.append(
            logits[0].sigmoid() if len(logits) == 1 else logits[1].sigmoid() / sum(x.sigmoid() for x in logits)
        )

    mixers = {block.mixer.projection: block.mixer for block in model.blocks}
    hooks = [projection.register_forward_hook(keep) for projection in mixers]
    model(ids[None], state)
    for hook in hooks:
        hook.remove()
    return gates


@torch.inference_mode()
def test_tracing_from_the_start_and_wrong_arguments():
    fast = Packed(make())
    ids = torch.tensor([3, 4])
    assert torch.equal(fast.trace(ids).logits, fast.trace(ids, fast.init_state(1)).logits)
    with pytest.raises(IndexError, match=r"not in 0 .. 64"):
        fast.trace(torch.tensor([1] * 40 + [65]))
    with pytest.raises(ValueError, match="expected a float32 state"):
        fast.trace(ids, fast.init_state(2))
    with pytest.raises(ValueError, match="expected ids"):
        fast.trace(ids.int())
    empty = fast.trace(ids[:0])
    assert empty.logits.shape == (0, 65) and empty.gates[0].shape == (0, 96)
