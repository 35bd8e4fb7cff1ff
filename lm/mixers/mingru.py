"""minGRU: a GRU whose gate and candidate ignore the previous state (arXiv 2410.01201, section 3.1).

    z_t = sigmoid(W_z x_t)      h~_t = W_h x_t      h_t = (1 - z_t) h_{t-1} + z_t g(h~_t)

One projection computes gate logits and candidates for all steps at once; `lm.recurrence` computes the states.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lm.mixers.base import CausalConvolution, Mixer, State
from lm.mixers.split import first_state, is_split, last_inputs
from lm.ops import Dropout, Linear, RMSNorm, branch_type
from lm.ops.branch import CellBranch
from lm.recurrence import mingru_scan
from lm.recurrence.portable import Kind, compute_type, g, gate_logits, widen


class MinGRU(Mixer):
    """[convolution ->] projection -> minGRU scan [-> down-projection].

    Args:
        width: channels of input and output, D.
        expansion: the hidden state has `expansion * width` channels, and is projected down again unless that is 1.
        convolution: size of a causal depth-wise convolution before the cell; 0 for none.
        gate_bias: initial bias of the gates towards keeping the past. Each +1 multiplies the odds of keeping it by e.

    The state is (h,), or (h, past) with a convolution; h (B, expansion * D) is float32, or float64 in a float64 model.
    """

    gates = 1
    kind = Kind.MINGRU
    scan = staticmethod(mingru_scan)

    def __init__(self, width: int, expansion: float = 2.0, convolution: int = 4, gate_bias: float = 0.0) -> None:
        super().__init__()
        self.hidden = round(width * expansion)
        self.convolution = CausalConvolution(width, convolution) if convolution else None
        self.projection = Linear(width, (self.gates + 1) * self.hidden)
        self.down = Linear(self.hidden, width) if self.hidden != width else nn.Identity()
        nn.init.zeros_(self.projection.bias)
        self.bias_gates(gate_bias)

    @torch.no_grad()
    def bias_gates(self, bias: float) -> None:
        """Lower the logit of the update gate z, the share of the new candidate."""
        self.projection.bias[: self.hidden] = -bias

    def init_state(self, batch: int) -> State:
        weight = self.projection.weight
        h = weight.new_zeros(batch, self.hidden, dtype=compute_type(weight))
        return (h,) if self.convolution is None else (h, self.convolution.init_state(batch))

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        h0, *past = state if state is not None else (None, None)
        cut = state is None and is_split()
        kept: tuple[Tensor, ...] = ()
        if self.convolution is not None:
            before = last_inputs(x, self.convolution.size - 1) if cut else past[0]
            x, now = self.convolution(x, before)
            kept = (now,)
        projection = self.projection(x)
        if cut:
            h0 = first_state(self._stretch, [projection])
        h, h_last = self.scan(projection, h0)
        return self.down(h), (h_last, *kept)

    def branch(self, x: Tensor, state: State | None, norm: RMSNorm, dropout: Dropout) -> tuple[Tensor, State]:
        if (dtype := self._fused_type(x, norm, dropout)) is None or isinstance(self.down, nn.Identity):
            return super().branch(x, state, norm, dropout)
        h0, *past = state if state is not None else (None, None)
        taps, up, down = self.convolution, self.projection, self.down
        y, *kept = CellBranch.apply(
            *(dtype, norm.epsilon, self.kind, x.contiguous(), h0, past[0] if past else None, norm.weight),
            *((None, None) if taps is None else (taps.weight, taps.bias)),
            *(up.weight, up.bias, down.weight, down.bias),
        )
        return y, tuple(tensor for tensor in kept if tensor is not None)

    def _fused_type(self, x: Tensor, norm: RMSNorm, dropout: Dropout) -> torch.dtype | None:
        """The type in which `CellBranch` is to multiply; None where `forward` is to be used."""
        others, taps = [norm.weight], self.convolution
        if taps is not None:
            others += [taps.weight, taps.bias]
        drops, long = dropout.training and dropout.p > 0, taps is not None and taps.size > x.shape[1]
        if drops or long or is_split() or not isinstance(self.down, Linear):
            return None
        return branch_type(x, [self.projection, self.down], others)

    def _stretch(self, projection: Tensor) -> tuple[Tensor, Tensor]:
        """What `first_state` needs: the product of 1 - z, and the last state, both (B, expansion * D)."""
        *logits, _ = widen(projection).chunk(self.gates + 1, dim=-1)
        return torch.exp(-softplus(gate_logits(logits)).sum(1)), self.scan(projection)[1]

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h, *past = state
        if self.convolution is not None:
            y, past[0] = self.convolution(x[:, None], past[0])
            x = y[:, 0]
        *logits, candidate = widen(self.projection(x)).chunk(self.gates + 1, dim=-1)
        h = torch.lerp(h.to(candidate.dtype), g(candidate), torch.sigmoid(gate_logits(logits)))
        return self.down(h.to(x.dtype)), (h, *past)
