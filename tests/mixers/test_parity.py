"""The mixers against implementations that others wrote: equal weights, equal outputs, equal gradients.

Two of those are packages: `pip install --no-deps mambapy==1.2.0 minGRU-pytorch==0.2.1`, for development only.
"""

import pytest
import torch
from torch import Tensor, nn

from lm.mixers import MIXERS, Mixer

WIDTH, BATCH, T = 32, 2, 150  # more than two chunks of Mamba's scan


def make(name: str, **options) -> Mixer:
    torch.manual_seed(0)
    mixer = MIXERS[name](WIDTH, **options)
    with torch.no_grad():
        for p in mixer.parameters():
            p += 0.1 * torch.randn_like(p)
    return mixer


@torch.no_grad()
def load(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy all weights, by name, into the module; each must be of the parameter's size, not shape."""
    parameters = dict(module.named_parameters())
    assert set(weights) == set(parameters)
    for name, p in parameters.items():
        p.copy_(weights[name].reshape(p.shape))


def assert_same_function(ours, theirs, x: Tensor) -> None:
    """Equal outputs, and equal gradients of a random-weighted sum of them, to 1e-5 of their norm."""
    results = []
    for function in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        torch.manual_seed(1)
        (grad,) = torch.autograd.grad((y * torch.randn(y.shape)).sum(), leaf)
        results.append((y.detach(), grad))
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("d_state, convolution, expansion", [(16, 4, 2), (3, 2, 1)])
def test_mamba_equals_mambapy(d_state, convolution, expansion):
    mambapy = pytest.importorskip("mambapy.mamba", reason="mambapy is not installed")
    ours = make("mamba", d_state=d_state, convolution=convolution, expansion=float(expansion))
    theirs = mambapy.MambaBlock(
        mambapy.MambaConfig(WIDTH, 1, d_state=d_state, d_conv=convolution, expand_factor=expansion)
    )
    assert ours.convolution is not None
    weights = {
        "in_proj.weight": ours.projection.weight,
        "conv1d.weight": ours.convolution.weight.T,
        "conv1d.bias": ours.convolution.bias,
        "x_proj.weight": ours.selection.weight,
        "dt_proj.weight": ours.dt.weight,
        "dt_proj.bias": ours.dt.bias,
        "A_log": ours.A_log.T,
        "D": ours.skip,
        "out_proj.weight": ours.output.weight,
    }
    load(theirs, weights)
    assert_same_function(lambda x: ours(x)[0], theirs, torch.randn(BATCH, T, WIDTH))


def test_mamba_starts_like_mambapy():
    mambapy = pytest.importorskip("mambapy.mamba", reason="mambapy is not installed")
    torch.manual_seed(0)
    ours, theirs = MIXERS["mamba"](512), mambapy.MambaBlock(mambapy.MambaConfig(512, 1))
    pairs = [
        (ours.dt.bias, theirs.dt_proj.bias),
        (ours.dt.weight, theirs.dt_proj.weight),
        (ours.convolution.weight, theirs.conv1d.weight),
        (ours.skip, theirs.D),
    ]
    for a, b in pairs:
        torch.testing.assert_close(a.mean(), b.mean(), atol=0.05, rtol=0.05)
        torch.testing.assert_close(a.std(), b.std(), atol=0.01, rtol=0.05)
    torch.testing.assert_close(ours.A_log.T, theirs.A_log)


@pytest.mark.parametrize("name, module, cell", [("mingru", "minGRU", "minGRU"), ("minlstm", "minLSTM", "minLSTM")])
@pytest.mark.parametrize("expansion", (1.0, 1.5))
def test_mingru_and_minlstm_equal_mingru_pytorch(name, module, cell, expansion):
    """From a zero state only: its minLSTM applies log g to a carried state, which is past g already.

    In float64, as its log-space form loses some digits.
    """
    package = pytest.importorskip(f"minGRU_pytorch.{module}", reason="minGRU-pytorch is not installed")
    ours = make(name, convolution=0, expansion=expansion).double()
    theirs = getattr(package, cell)(WIDTH, expansion_factor=expansion).double()
    nn.init.zeros_(ours.projection.bias)  # theirs has none
    *gates, candidate = ours.projection.weight.chunk(ours.gates + 1)
    weights = {next(n for n, _ in theirs.named_parameters()): torch.cat([candidate, *gates])}
    if expansion != 1:
        nn.init.zeros_(ours.down.bias)
        weights["to_out.weight"] = ours.down.weight
    load(theirs, weights)
    assert_same_function(lambda x: ours(x)[0], theirs, torch.randn(BATCH, T, WIDTH, dtype=torch.float64))


def test_mingru_carries_its_state_like_mingru_pytorch():
    package = pytest.importorskip("minGRU_pytorch.minGRU", reason="minGRU-pytorch is not installed")
    ours, theirs = make("mingru", convolution=0, expansion=1.0).double(), package.minGRU(WIDTH).double()
    nn.init.zeros_(ours.projection.bias)
    gate, candidate = ours.projection.weight.chunk(2)
    load(theirs, {"to_hidden_and_gate.weight": torch.cat([candidate, gate])})
    x, h0 = torch.randn(BATCH, T, WIDTH).double(), torch.rand(BATCH, WIDTH).double()  # log space: positive states only
    assert_same_function(lambda x: ours(x, (h0,))[0], lambda x: theirs(x, prev_hidden=h0[:, None]), x)


@pytest.mark.parametrize("name", ("gru", "lstm"))
@pytest.mark.parametrize("expansion", (1.0, 1.5))
def test_reference_cells_equal_those_of_torch(name, expansion):
    fast, reference = make(name, expansion=expansion), make(f"{name}_reference", expansion=expansion)
    weights = {
        "input.weight": fast.cell.weight_ih_l0,
        "input.bias": fast.cell.bias_ih_l0,
        "recurrent.weight": fast.cell.weight_hh_l0,
        "recurrent.bias": fast.cell.bias_hh_l0,
    }
    load(reference, weights | {f"down.{n}": p for n, p in fast.down.named_parameters()})
    x = torch.randn(BATCH, T, WIDTH)
    _, state = fast(torch.randn(BATCH, 20, WIDTH))
    state = tuple(s.detach() for s in state)
    assert_same_function(lambda x: reference(x, state)[0], lambda x: fast(x, state)[0], x)
    for a, b in zip(reference(x, state)[1], fast(x, state)[1], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ("gru", "lstm"))
def test_reference_cells_start_like_those_of_torch(name):
    torch.manual_seed(0)
    fast, reference = MIXERS[name](128), MIXERS[f"{name}_reference"](128)
    torch.testing.assert_close(reference.input.bias, fast.cell.bias_ih_l0)
    torch.testing.assert_close(reference.recurrent.bias, fast.cell.bias_hh_l0)
