"""The residual branches of a block as one function, against the modules one after the other."""

import pytest
import torch
from torch import Tensor

from lm.config.options import MixerOptions, ModelConfig
from lm.model import Block, make_mixers
from lm.ops import affine, branch
from tests.recurrence.helpers import assert_close, error

CONFIGS = {
    "minGRU": ("mingru", {}),
    "minLSTM": ("minlstm", {}),
    "no convolution": ("mingru", {"convolution": 0}),
    "narrow": ("minlstm", {"expansion": 1.0}),
    "attention": ("attention", {}),
}
pytestmark = pytest.mark.usefixtures("compiler")


def make_block(name: str, **options) -> Block:
    mixer, given = CONFIGS[name]
    config = ModelConfig(mixer=mixer, width=64, mlp_expansion=2.0, options=MixerOptions(**given), **options)
    torch.manual_seed(0)
    block = Block(make_mixers(config)[0], config)
    with torch.no_grad():
        for p in block.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return block


def run(block: Block, monkeypatch, backend: str, dtype: torch.dtype, pieces: list[int]) -> list[Tensor]:
    """The outputs of a sequence in pieces, the last state, and the gradients of input, state and weights."""
    monkeypatch.setenv("LM_BACKEND", backend)
    torch.manual_seed(1)
    weight = next(block.parameters())
    x = torch.randn(3, sum(pieces), 64).to(weight.dtype).requires_grad_()
    state = start = tuple((s + 0.1).requires_grad_() for s in block.init_state(3))
    outputs = []
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        for piece in x.split(pieces, dim=1):
            y, state = block(piece, state)
            outputs.append(y)
    results = [torch.cat(outputs, dim=1), *(s.to(weight.dtype) for s in state)]
    loss = sum((torch.randn(y.shape).to(y) * y).sum() for y in results)
    leaves = [x, *start, *block.parameters()]
    return results + list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pieces", [[40], [16, 24, 17]], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_as_the_modules_one_after_the_other(monkeypatch, name, dtype, pieces):
    """Also where the gradients come through the states of the pieces before."""
    block = make_block(name)
    got, twin = (run(block, monkeypatch, backend, dtype, pieces) for backend in ("native", "portable"))
    want = run(block.double(), monkeypatch, "portable", torch.float32, pieces)
    assert [y.dtype for y in got] == [y.dtype for y in twin]
    for y, other, exact in zip(got, twin, want, strict=True):
        assert error(y, exact) <= 4 * error(other, exact) + 1e-5  # single numbers make up most of either


@pytest.mark.parametrize("name", CONFIGS)
def test_from_the_initial_state(monkeypatch, name):
    block, x = make_block(name), torch.randn(2, 20, 64)
    got, state = block(x)
    want, wanted = block(x, block.init_state(2))
    torch.testing.assert_close(got, want)
    for s, t in zip(state, wanted, strict=True):
        torch.testing.assert_close(s, t)
    grads = [torch.autograd.grad(y.sum(), list(block.parameters())) for y in (got, want)]
    for p, q in zip(*grads, strict=True):
        torch.testing.assert_close(p, q)


def test_where_they_are_used(monkeypatch):
    """Where gradients are recorded and nothing is dropped."""
    if not affine.columns(torch.float32):
        pytest.skip("this processor has something faster")
    used = []
    for kind in (branch.MLPBranch, branch.CellBranch):
        apply = kind.apply
        monkeypatch.setattr(
            kind, "apply", lambda *a, kind=kind, apply=apply: (used.append(kind.__name__), apply(*a))[1]
        )

    def uses(block: Block, x: Tensor) -> list[str]:
        used.clear()
        block(x)
        return sorted(used)

    x, both = torch.randn(2, 20, 64), ["CellBranch", "MLPBranch"]
    for name in ("minGRU", "minLSTM", "no convolution"):
        assert uses(make_block(name), x) == both
    assert uses(make_block("attention"), x) == uses(make_block("narrow"), x) == ["MLPBranch"]
    assert uses(make_block("minGRU", mlp="gelu"), x) == uses(make_block("minGRU", mlp="none"), x) == ["CellBranch"]
    dropping = make_block("minGRU", dropout=0.1)
    assert not uses(dropping, x) and uses(dropping.eval(), x) == both
    assert not uses(make_block("minGRU"), x[:, :15]) and not uses(make_block("minGRU").double(), x.double())
    with torch.no_grad():
        assert not uses(make_block("minGRU"), x)


def test_a_convolution_longer_than_the_sequence(monkeypatch):
    """Its past reaches back further than the sequence."""
    CONFIGS["long"] = ("mingru", {"convolution": 30})
    block = make_block("long")
    got, want = (run(block, monkeypatch, backend, torch.float32, [20, 20]) for backend in ("native", "portable"))
    del CONFIGS["long"]
    assert_close(got, [y.double() for y in want], 1e-4)


def test_states_of_another_type_or_shape(monkeypatch):
    block, x = make_block("minGRU"), torch.randn(2, 20, 64)
    h, past = (torch.randn_like(s) for s in block.init_state(2))
    got, _ = block(x, (h.bfloat16(), past))
    monkeypatch.setenv("LM_BACKEND", "portable")
    torch.testing.assert_close(got, block(x, (h.bfloat16(), past))[0], atol=1e-4, rtol=1e-4)
    monkeypatch.setenv("LM_BACKEND", "auto")
    for state in ((h[:1], past), (h[:, 1:], past), (h, past[:1]), (h, past[:, 1:])):
        with pytest.raises(ValueError, match="shape"):
            block(x, state)
