"""The interface of a mixer, the part of a block that moves information through time.

To add a mixer, write a subclass in a file of its own, and declare it in `lm.config.options.MIXERS`.
"""

import torch
from torch import Tensor, nn

from lm.ops import Dropout, RMSNorm, causal_convolution

State = tuple[Tensor, ...]
"""The state of a mixer: real tensors with the batch first. Only the mixer that made it knows what they mean."""


class Mixer(nn.Module):
    """Maps (B, T, D) to (B, T, D), causally. The state is an argument and a result, never kept on the module."""

    def init_state(self, batch: int) -> State:
        """The state before the first character, for so many sequences."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """All steps of x (B, T, D), any T >= 1, in parallel; from the initial state by default."""
        raise NotImplementedError

    def branch(self, x: Tensor, state: State | None, norm: RMSNorm, dropout: Dropout) -> tuple[Tensor, State]:
        """x + dropout(y), where `forward` gives y and the state for norm(x)."""
        y, state = self.forward(norm(x), state)
        return dropout.add(x, y), state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step, x (B, D). Equal to `forward` on a sequence of one; constant in time and memory."""
        y, state = self.forward(x[:, None], state)
        return y[:, 0], state

    def flops(self, context: int) -> float:
        """Floating-point operations of the forward pass per character, at this context length."""
        return 2.0 * sum(weight.numel() for weight in self.parameters() if weight.dim() >= 2)


class CausalConvolution(nn.Module):
    """A short depth-wise convolution over the present input and the `size - 1` inputs before it.

    The state is those last inputs, (B, size - 1, D). The initial weights are the identity plus a little noise.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.empty(size, width).normal_(std=0.1))  # the last row is for the present
        self.bias = nn.Parameter(torch.zeros(width))
        with torch.no_grad():
            self.weight[-1] += 1.0

    def init_state(self, batch: int) -> Tensor:
        return self.weight.new_zeros(batch, self.size - 1, self.weight.shape[1])

    def forward(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, T, D) -> y (B, T, D) and the new past, in x's type."""
        return causal_convolution(x, past, self.weight, self.bias)
