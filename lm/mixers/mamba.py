"""Mamba: a selective state space model, S6 (arXiv 2312.00752, algorithm 2 and section 3.4).

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t      y_t = C_t h_t + skip u_t

Every channel of u (E of them) has a state of N numbers; dt_t (one per channel), B_t and C_t (N each, shared by the
channels) are functions of u_t. Around it: a causal convolution and SiLU before, a SiLU gate and a projection after.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from lm.mixers.base import CausalConvolution, Mixer, State
from lm.mixers.split import first_state, is_split, last_inputs
from lm.ops import Linear
from lm.recurrence import selective_scan
from lm.recurrence.portable import compute_type, widen


class Mamba(Mixer):
    """Projection to u and its gate -> convolution -> SiLU -> selective scan -> gate -> projection.

    Args:
        width: channels of input and output, D.
        expansion: E = `expansion * width` channels inside.
        convolution: size of the causal depth-wise convolution; 0 for none.
        d_state: numbers N of each channel's state.

    The state is (h,), or (h, past) with a convolution; h (B, N, E) is float32, or float64 in a float64 model.
    """

    def __init__(self, width: int, expansion: float = 2.0, convolution: int = 4, d_state: int = 16) -> None:
        super().__init__()
        self.inner = round(width * expansion)
        self.d_state, self.rank = d_state, math.ceil(width / 16)
        self.projection = Linear(width, 2 * self.inner, bias=False)
        self.convolution = CausalConvolution(self.inner, convolution) if convolution else None
        self.selection = Linear(self.inner, self.rank + 2 * d_state, bias=False)
        self.dt = Linear(self.rank, self.inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log()[:, None].repeat(1, self.inner))  # (N, E)
        self.skip = nn.Parameter(torch.ones(self.inner))
        self.output = Linear(self.inner, width, bias=False)
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """As in Mamba's code: steps dt log-uniform in [0.001, 0.1], and torch's default for a convolution."""
        dt = torch.empty(self.inner).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.dt.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        nn.init.uniform_(self.dt.weight, -(self.rank**-0.5), self.rank**-0.5)
        if self.convolution is not None:
            bound = self.convolution.size**-0.5
            nn.init.uniform_(self.convolution.weight, -bound, bound)

    def init_state(self, batch: int) -> State:
        h = self.A_log.new_zeros(batch, *self.A_log.shape, dtype=compute_type(self.A_log))
        return (h,) if self.convolution is None else (h, self.convolution.init_state(batch))

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        h, *past = self.init_state(x.shape[0]) if state is None else state
        cut = state is None and is_split()
        u, gate = self.projection(x).chunk(2, dim=-1)  # (B, T, E) each
        if self.convolution is not None:
            u, past[0] = self.convolution(u, last_inputs(u, self.convolution.size - 1) if cut else past[0])
        u = silu(u)
        delta, B, C = self.select(u)
        A = -self.A_log.exp()
        if cut:
            h = first_state(self._stretch, [u, delta, B, C], A)
        y, h = selective_scan(u, delta, A, B, C, self.skip, h)
        return self.output(y * silu(gate)), (h, *past)

    def _stretch(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
        """What `first_state` needs: the product of exp(dt A), and the last state, both (B, N, E)."""
        product = torch.exp(A * softplus(widen(delta)).sum(1)[:, None])
        return product, selective_scan(u, delta, A, B, C, self.skip)[1]

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h, *past = state
        u, gate = self.projection(x).chunk(2, dim=-1)
        if self.convolution is not None:
            y, past[0] = self.convolution(u[:, None], past[0])
            u = y[:, 0]
        u = silu(u)
        delta, B, C = map(widen, self.select(u))
        dt = softplus(delta)
        h = torch.exp(dt[:, None] * -self.A_log.exp()) * h + B[..., None] * (dt * u)[:, None]
        y = torch.addcmul((C[..., None] * h).sum(-2), u, self.skip).to(x.dtype) * silu(gate)
        return self.output(y), (h, *past)

    def select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The input-dependent parts, for u (..., E): step sizes before softplus delta (..., E), B and C (..., N)."""
        dt, B, C = self.selection(u).split([self.rank, self.d_state, self.d_state], dim=-1)
        return self.dt(dt), B, C

    def flops(self, context: int) -> float:
        """Adds, for each of the N * E numbers of state: 1 for B, 2 for h, 2 for C; 2 for exp(dt A) count as A_log's."""
        return super().flops(context) + 5.0 * self.A_log.numel()
