"""The interface of a mixer, and the causal convolution."""

import pytest
import torch
from torch import nn

from lm.mixers.base import CausalConvolution, Mixer


def test_convolution_of_three_inputs_by_hand():
    """The last row of weights is for the present input, the row before it for the input before, and so on."""
    convolution = CausalConvolution(1, 3)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([[100.0], [10.0], [1.0]]))
        convolution.bias.fill_(0.5)
    x = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    y, past = convolution(x, None)
    assert y.flatten().tolist() == [1.5, 12.5, 123.5, 234.5]
    assert past.flatten().tolist() == [3.0, 4.0]
    y, past = convolution(x[:, :1], past)
    assert y.flatten().tolist() == [341.5] and past.flatten().tolist() == [4.0, 1.0]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_convolution_equals_that_of_torch(size):
    torch.manual_seed(0)
    ours, theirs = CausalConvolution(6, size), nn.Conv1d(6, 6, size, groups=6, padding=size - 1)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight.T[:, None])
        ours.bias.normal_()
        theirs.bias.copy_(ours.bias)
    x = torch.randn(2, 9, 6)
    y, past = ours(x, None)
    torch.testing.assert_close(y, theirs(x.mT)[..., :9].mT)
    assert torch.equal(past, x[:, 9 - (size - 1) :])


def test_convolution_starts_as_the_identity_plus_a_little_of_the_past():
    torch.manual_seed(0)
    convolution = CausalConvolution(4000, 3)
    assert not convolution.bias.any()
    torch.testing.assert_close(convolution.weight.mean(1), torch.tensor([0.0, 0.0, 1.0]), atol=0.01, rtol=0)
    torch.testing.assert_close(convolution.weight.std(1), torch.full((3,), 0.1), atol=0.005, rtol=0)
    assert not convolution.init_state(5).any() and convolution.init_state(5).shape == (5, 2, 4000)


def test_a_mixer_needs_only_its_forward():
    """`step` is `forward` on a sequence of one; flops are two for each number of a matrix, none for a vector."""

    class Sum(Mixer):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(3, 5)

        def forward(self, x, state=None):
            total = x.cumsum(1) + (0 if state is None else state[0][:, None])
            return total, (total[:, -1],)

    y, (state,) = Sum().step(torch.ones(2, 3), (torch.full((2, 3), 4.0),))
    assert torch.equal(y, torch.full((2, 3), 5.0)) and torch.equal(state, y)
    assert Sum().flops(100) == 2 * 15
    with pytest.raises(NotImplementedError):
        Mixer().init_state(1)
    with pytest.raises(NotImplementedError):
        Mixer()(torch.ones(1, 1, 3))
