"""The language model: its blocks, initial weights, dropout, parameter counts and options."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from lm.config.options import MixerOptions, ModelConfig
from lm.files import UserError
from lm.model import MLP, Block, LanguageModel

V, D = 11, 8
IDS = torch.tensor([[1, 5, 9, 0, 10], [2, 2, 7, 3, 8]])


def make(mixer: str | list[str] = "mingru", options: MixerOptions | None = None, **fields) -> LanguageModel:
    """A small model with random weights."""
    torch.manual_seed(0)
    config = ModelConfig(mixer=mixer, options=options or MixerOptions(), **{"width": D, "layers": 2, **fields})
    model = LanguageModel(V, config)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    return model.eval()


def normed(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm (arXiv 1910.07467)."""
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt() * weight


# ---------------------------------------------------------------- what is computed


def activated(kind: str, up: Tensor) -> Tensor:
    if kind == "relu2":
        return torch.clamp(up, min=0) ** 2
    if kind == "gelu":
        return up * 0.5 * (1 + torch.erf(up / math.sqrt(2)))
    gate, value = up.split(up.shape[-1] // 2, dim=-1)
    return gate * torch.sigmoid(gate) * value


@pytest.mark.parametrize(
    ("kind", "expansion", "hidden"),
    [("relu2", 4.0, 48), ("gelu", 1.5, 18), ("swiglu", 4.0, 32), ("swiglu", 1.0, 8)],
)
def test_mlp(kind, expansion, hidden):
    """swiglu has two thirds of the hidden channels, twice: as many parameters as the others."""
    torch.manual_seed(0)
    mlp, x = MLP(12, expansion, kind), torch.randn(2, 3, 12)
    assert mlp.down.weight.shape == (12, hidden)
    assert mlp.up.weight.shape == (hidden * (2 if kind == "swiglu" else 1), 12)
    assert mlp.up.bias is None and mlp.down.bias is None
    torch.testing.assert_close(mlp(x), activated(kind, x @ mlp.up.weight.T) @ mlp.down.weight.T)


@pytest.mark.parametrize("mlp", ["relu2", "none"])
def test_a_block_is_two_residual_branches(mlp):
    block = make(mlp=mlp).blocks[0]
    x = torch.randn(2, 5, D)
    expected = x + block.mixer(normed(x, block.norm_mixer.weight))[0]
    if mlp != "none":
        hidden = torch.clamp(linear(normed(expected, block.norm_mlp.weight), block.mlp.up.weight), min=0) ** 2
        expected = expected + linear(hidden, block.mlp.down.weight)
    torch.testing.assert_close(block(x)[0], expected)
    state = block.mixer(torch.randn(2, 3, D))[1]
    torch.testing.assert_close(block.step(x[:, 0], state)[0], block(x[:, :1], state)[0][:, 0])


def test_the_model_is_its_blocks_between_embedding_and_head():
    """Two layers, which have different mixers and a state each."""
    model = make(["mingru", "attention"])
    x, states = embedding(IDS, model.embedding.weight), []
    for block in model.blocks:
        x, state = block(x)
        states.append(state)
    logits, got = model(IDS)
    torch.testing.assert_close(logits, linear(normed(x, model.norm.weight), model.head.weight))
    torch.testing.assert_close(got, tuple(states))
    torch.testing.assert_close(model(IDS[:, 3:], model(IDS[:, :3])[1])[0], logits[:, 3:])
    torch.testing.assert_close(model.step(IDS[:, 4], model(IDS[:, :4])[1])[0], logits[:, 4])
    assert [len(layer) for layer in model.init_state(2)] == [2, 3]


# ---------------------------------------------------------------- dropout


@pytest.mark.parametrize("stepping", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_dropout_on_the_embedding(p, stepping):
    """In training a number is zero with probability p, else 1 / (1 - p) times what it is otherwise."""
    torch.manual_seed(0)
    model, seen = LanguageModel(V, ModelConfig(width=400, layers=1, dropout=p)), []
    model.blocks[0].norm_mixer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    ids = IDS[:, 0] if stepping else IDS
    for training in (True, False):
        model.train(training)
        model.step(ids, model.init_state(2)) if stepping else model(ids)
    exact = model.embedding.weight[ids]
    assert_dropped(seen[0], exact, p)
    assert torch.equal(seen[1], exact)


def assert_dropped(got: Tensor, exact: Tensor, p: float) -> None:
    dropped = got == 0
    assert dropped.float().mean().item() == pytest.approx(p, abs=0.05)
    torch.testing.assert_close(got, exact.where(~dropped, torch.zeros(())) / (1 - p))


@pytest.mark.parametrize("stepping", [False, True])
def test_dropout_on_what_mixer_and_mlp_add(stepping):
    p, (block,) = 0.25, make(width=400, layers=1, dropout=0.25).blocks
    added = {}
    block.norm_mlp.register_forward_pre_hook(lambda module, inputs: added.update(between=inputs[0]))
    block.mlp.register_forward_hook(lambda module, inputs, output: added.update(mlp=output))
    x, state = torch.zeros(2, 5, 400), block.init_state(2)
    for training in (True, False):
        block.train(training)
        if stepping:
            y, mixed = block.step(x[:, 0], state)[0], block.mixer.step(block.norm_mixer(x[:, 0]), state)[0]
        else:
            y, mixed = block(x)[0], block.mixer(block.norm_mixer(x))[0]
        assert_dropped(added["between"], mixed, p * training)
        assert_dropped(y - added["between"], added["mlp"], p * training)


def test_no_dropout_by_default():
    model = make().train()
    assert torch.equal(model(IDS)[0], model.eval()(IDS)[0])


# ---------------------------------------------------------------- initial weights


@pytest.mark.parametrize("mixer", ["mingru", "attention", "mamba", "s4d", "gru", "lstm_reference"])
@pytest.mark.parametrize(("mlp", "residual_init"), [("relu2", 0.0), ("relu2", 1.0), ("swiglu", 2.0)])
def test_initial_weights(mixer, mlp, residual_init):
    """Standard deviation 1 / sqrt(fan-in), in 8 layers a quarter of that for what adds to the stream, as in GPT-2."""
    torch.manual_seed(0)
    model = LanguageModel(V, ModelConfig(mixer=mixer, width=64, layers=8, mlp=mlp, residual_init=residual_init))
    assert not model.head.weight.any() and (model.norm.weight == 1).all()
    assert model.embedding.weight.std().item() == pytest.approx(1.0, rel=0.1)
    seen = set()
    for name, module in model.blocks.named_modules():
        if isinstance(module, nn.RMSNorm):
            assert (module.weight == 1).all()
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Linear) and last != "dt":
            seen.add(last)
            writes = last in ("down", "output")
            expected = module.in_features**-0.5 * (0.25 * residual_init if writes else 1.0)
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(module.weight.mean().item()) <= 0.05 * expected
    assert {"up", "down"} <= seen


# ---------------------------------------------------------------- counts


MIXER_PARAMETERS = {  # width 8, expansion 2: hidden 16
    "mingru": 4 * 8 + 8 + (8 + 1) * 2 * 16 + (16 + 1) * 8,
    "minlstm": 4 * 8 + 8 + (8 + 1) * 3 * 16 + (16 + 1) * 8,
    "attention": 8 * 3 * 8 + 8 * 8 + 2 * 8,
    "mamba": 8 * 32 + (4 + 1) * 16 + 16 * (1 + 2 * 16) + (1 + 1) * 16 + 16 * 16 + 16 + 16 * 8,
    "s4d": 8 + 2 * 8 * 32 + 8 * 64 + 8 + (8 + 1) * 16,
    "gru": 3 * 16 * (8 + 16 + 2) + (16 + 1) * 8,
    "lstm": 4 * 16 * (8 + 16 + 2) + (16 + 1) * 8,
    "gru_reference": 3 * 16 * (8 + 16 + 2) + (16 + 1) * 8,
    "lstm_reference": 4 * 16 * (8 + 16 + 2) + (16 + 1) * 8,
}


@pytest.mark.parametrize("mixer", MIXER_PARAMETERS)
def test_number_of_parameters(mixer):
    mlp = 2 * 8 * 32
    blocks = 2 * (MIXER_PARAMETERS[mixer] + mlp + 2 * 8)
    assert make(mixer).parameters_total == V * 8 + blocks + 8 + 8 * V
    without = make(mixer, mlp="none", layers=1)
    assert without.parameters_total == V * 8 + MIXER_PARAMETERS[mixer] + 8 + 8 + 8 * V


def test_flops():
    """Two for each weight of a matrix, the convolution's too; none for the embedding, which is a table, and vectors."""
    mixer = 4 * 8 + 8 * 2 * 16 + 16 * 8
    assert make().flops(64) == 2 * (2 * (mixer + 2 * 8 * 32) + 8 * V)
    assert make(mlp="none").flops(64) == 2 * (2 * mixer + 8 * V)
    attention = make("attention", layers=1)
    assert attention.flops(64) - attention.flops(32) == 4 * (64 - 32) / 2 * 8


# ---------------------------------------------------------------- options


def state_shapes(model: LanguageModel) -> list[list[tuple[int, ...]]]:
    return [[tuple(part.shape[1:]) for part in layer] for layer in model.init_state(1)]


@pytest.mark.parametrize(
    ("mixer", "options", "shapes"),
    [
        ("mingru", {"expansion": 3.0}, [(24,), (3, 8)]),
        ("mingru", {"convolution": 6}, [(16,), (5, 8)]),
        ("minlstm", {"convolution": 0}, [(16,)]),
        ("mamba", {"d_state": 5, "expansion": 1.0, "convolution": 2}, [(5, 8), (1, 8)]),
        ("s4d", {"d_state": 6}, [(8, 6)]),
        ("attention", {"heads": 2, "window": 9}, [(9, 2, 4), (9, 2, 4), ()]),
        ("gru", {"expansion": 0.5}, [(4,)]),
        ("lstm_reference", {"expansion": 1.0}, [(8,), (8,)]),
    ],
)
def test_options_of_a_mixer(mixer, options, shapes):
    assert state_shapes(make(mixer, MixerOptions(**options))) == [shapes, shapes]


@pytest.mark.parametrize("mixer", ["mingru", "minlstm", "gru", "lstm", "gru_reference", "lstm_reference"])
def test_gate_bias_reaches_the_mixer(mixer):
    """It is the largest bias of a new model."""
    torch.manual_seed(0)
    model = LanguageModel(V, ModelConfig(mixer=mixer, options=MixerOptions(gate_bias=2.5), width=D, layers=1))
    biases = [p.abs().max().item() for name, p in model.blocks.named_parameters() if "bias" in name]
    assert max(biases) == 2.5


def test_each_option_goes_to_the_mixers_that_have_it():
    options = MixerOptions(window=7, d_state=4, expansion=1.0, convolution=0)
    model = make(["attention", "mamba", "s4d", "mingru"], options)
    assert state_shapes(model) == [[(7, 1, 8), (7, 1, 8), ()], [(4, 8)], [(8, 4)], [(8,)]]


@pytest.mark.parametrize(
    ("mixer", "options", "message"),
    [
        ("mingru", {"window": 8}, r"^model\.options\.window is not an option of mingru$"),
        (["s4d", "gru", "s4d"], {"heads": 2}, r"^model\.options\.heads is not an option of gru or s4d$"),
        ("attention", {"heads": 3}, r"^width 8 cannot be cut into 3 heads"),
        ("s4d", {"d_state": 5}, r"^d_state 5 must be even"),
    ],
)
def test_options_that_do_not_fit(mixer, options, message):
    with pytest.raises(UserError, match=message):
        make(mixer, MixerOptions(**options))


def test_layers():
    assert len(make(layers=3).blocks) == 3
    names = [type(block.mixer).__name__ for block in make(["gru", "mingru", "gru"]).blocks]
    assert names == ["GRU", "MinGRU", "GRU"]
    assert isinstance(make().blocks[0], Block)


def test_blocks_start_as_identities():
    """By default: the first gradients are then those of the head and the embedding."""
    for mixer in MIXER_PARAMETERS:
        torch.manual_seed(0)
        model = LanguageModel(V, ModelConfig(mixer=mixer, width=D, layers=2))
        x = torch.randn(2, 5, D)
        assert torch.equal(model.blocks[1](x)[0], x), mixer
