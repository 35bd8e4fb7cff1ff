"""GRU, the traditional cell that minGRU is a simplification of (K. Cho et al., arXiv 1406.1078, as in torch.nn.GRU).

    r_t = sigmoid(W_r x_t + U_r h_{t-1})      n_t = tanh(W_n x_t + r_t * (U_n h_{t-1}))
    z_t = sigmoid(W_z x_t + U_z h_{t-1})      h_t = (1 - z_t) n_t + z_t h_{t-1}

The gates depend on the previous state, so that the steps cannot be computed in parallel. `GRU` is the fastest
implementation (torch.nn.GRU: one call, cuDNN on a GPU), `GRUReference` the step-by-step cell of the paper's timings.
"""

import torch
from torch import Tensor, nn

from lm.mixers.base import Mixer, State
from lm.ops import Linear
from lm.recurrence.portable import compute_type, widen


class GRU(Mixer):
    """torch.nn.GRU [-> down-projection].

    Args:
        width: channels of input and output, D.
        expansion: the hidden state has H = `expansion * width` channels, projected down again unless that is 1.
        gate_bias: initial bias of the gate that keeps the past.

    The state is (h,), float32 (B, H), or float64 in a float64 model. The cell computes in the type of its weights:
    under autocast torch would keep h between steps in half precision, which rounds a slow gate's updates away.
    """

    gates = 3
    kind: type[nn.GRU] | type[nn.LSTM] = nn.GRU

    def __init__(self, width: int, expansion: float = 2.0, gate_bias: float = 0.0) -> None:
        super().__init__()
        self.hidden = round(width * expansion)
        bias = self.make_cell(width)
        self.down = Linear(self.hidden, width) if self.hidden != width else nn.Identity()
        with torch.no_grad():
            bias[self.hidden : 2 * self.hidden] = gate_bias  # of the GRU's z, the LSTM's f

    def make_cell(self, width: int) -> Tensor:
        """Create and initialise the cell. Returns the bias of its gates (gates * H,), which is zero so far."""
        self.cell = self.kind(width, self.hidden, batch_first=True)
        for name, p in self.cell.named_parameters():
            # As the model initialises every other matrix; torch's own scale is smaller, and equal for W and U.
            nn.init.normal_(p, std=p.shape[-1] ** -0.5) if name.startswith("weight") else nn.init.zeros_(p)
        return self.cell.get_parameter("bias_ih_l0")

    def init_state(self, batch: int) -> State:
        weight = next(self.parameters())
        return (weight.new_zeros(batch, self.hidden, dtype=compute_type(weight)),)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        dtype = next(self.cell.parameters()).dtype
        state = self.init_state(x.shape[0]) if state is None else state
        first = tuple(part[None].to(dtype) for part in state)
        with torch.autocast(x.device.type, enabled=False):
            h, last = self.cell(x.to(dtype), first if len(first) > 1 else first[0])  # the LSTM's has two parts
        return self.down(h.to(x.dtype)), tuple(widen(part[0]) for part in (last if len(first) > 1 else (last,)))


class GRUReference(GRU):
    """The same function as `GRU`, one step at a time, with weights laid out as in torch.nn.GRU."""

    def make_cell(self, width: int) -> Tensor:
        self.input = Linear(width, self.gates * self.hidden)
        self.recurrent = Linear(self.hidden, self.gates * self.hidden)
        nn.init.zeros_(self.input.bias)
        nn.init.zeros_(self.recurrent.bias)
        return self.input.bias

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        state = self.init_state(x.shape[0]) if state is None else state
        hs = []
        for x_t in x.unbind(1):
            state = self.cell_step(x_t, state)
            hs.append(state[0])
        return self.down(torch.stack(hs, dim=1).to(x.dtype)), state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        state = self.cell_step(x, state)
        return self.down(state[0].to(x.dtype)), state

    def cell_step(self, x: Tensor, state: State) -> State:
        """The next state from x (B, D) and the state; the output h is its first tensor."""
        (h,) = state
        r, z, n = widen(self.input(x)).chunk(3, dim=-1)
        r_h, z_h, n_h = widen(self.recurrent(h.to(x.dtype))).chunk(3, dim=-1)
        n = torch.tanh(n + torch.sigmoid(r + r_h) * n_h)
        return (torch.lerp(n, h.to(n.dtype), torch.sigmoid(z + z_h)),)
