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
from lm.recurrence import linear_scan

CHUNK = 32
"""Steps whose states (B, CHUNK, N, E) are in memory at a time."""


class Mamba(Mixer):
    """Projection to u and its gate -> convolution -> SiLU -> selective scan -> gate -> projection.

    Args:
        width: channels of input and output, D.
        expansion: E = `expansion * width` channels inside.
        convolution: size of the causal depth-wise convolution; 0 for none.
        d_state: numbers N of each channel's state.

    The state is (h,), or (h, past) with a convolution; h is float32 (B, N, E).
    """

    def __init__(self, width: int, expansion: float = 2.0, convolution: int = 4, d_state: int = 16) -> None:
        super().__init__()
        self.inner = round(width * expansion)
        self.d_state, self.rank = d_state, math.ceil(width / 16)
        self.projection = nn.Linear(width, 2 * self.inner, bias=False)
        self.convolution = CausalConvolution(self.inner, convolution) if convolution else None
        self.selection = nn.Linear(self.inner, self.rank + 2 * d_state, bias=False)
        self.dt = nn.Linear(self.rank, self.inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log()[:, None].repeat(1, self.inner))  # (N, E)
        self.skip = nn.Parameter(torch.ones(self.inner))
        self.output = nn.Linear(self.inner, width, bias=False)
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
        h = torch.zeros(batch, self.d_state, self.inner, device=self.A_log.device)
        return (h,) if self.convolution is None else (h, self.convolution.init_state(batch))

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        h, *past = self.init_state(x.shape[0]) if state is None else state
        u, gate = self.projection(x).chunk(2, dim=-1)  # (B, T, E) each
        if self.convolution is not None:
            u, past[0] = self.convolution(u, past[0])
        u = silu(u)
        y, h = selective_scan(u, *self.select(u), self.A_log, h)
        y = torch.addcmul(y, u, self.skip).to(x.dtype) * silu(gate)
        return self.output(y), (h, *past)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h, *past = state
        u, gate = self.projection(x).chunk(2, dim=-1)
        if self.convolution is not None:
            y, past[0] = self.convolution(u[:, None], past[0])
            u = y[:, 0]
        u = silu(u)
        dt, B, C = self.select(u)
        with torch.autocast(x.device.type, enabled=False):
            a, b = discretise(u.float(), dt, B, self.A_log)
            h = a * h + b
        y = torch.addcmul((C[..., None] * h).sum(-2), u, self.skip).to(x.dtype) * silu(gate)
        return self.output(y), (h, *past)

    def select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What depends on the input u (..., E): step sizes dt (..., E), B and C (..., N)."""
        dt, B, C = self.selection(u).split([self.rank, self.d_state, self.d_state], dim=-1)
        return softplus(self.dt(dt).float()), B.float(), C.float()

    def flops(self, context: int) -> float:
        """Of each of the N * E numbers of state: 2 (counted as A_log's) for exp(dt A), 1 for B, 2 for h, 2 for C."""
        return super().flops(context) + 5.0 * self.A_log.numel()


def discretise(u: Tensor, dt: Tensor, B: Tensor, A_log: Tensor) -> tuple[Tensor, Tensor]:
    """a and b of h_t = a_t h_{t-1} + b_t, both (..., N, E): zero-order hold for A, Euler for B, as in Mamba's code.

    u, dt (..., E), B (..., N), A_log (N, E). The outer product is a matrix product because its gradient, two sums over
    (..., N, E), then is one too.
    """
    a = torch.exp(dt[..., None, :] * -A_log.exp())
    return a, B[..., None] @ (dt * u)[..., None, :]


def selective_scan(u: Tensor, dt: Tensor, B: Tensor, C: Tensor, A_log: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """C_t h_t for all t (batch, T, E), and the last h, in float32.

    Args:
        u, dt: (batch, T, E). B, C: (batch, T, N). A_log: (N, E). h: (batch, N, E).
    """
    with torch.autocast(u.device.type, enabled=False):
        return SelectiveScan.apply(u.float(), dt, B, C, A_log, h)


class SelectiveScan(torch.autograd.Function):
    """The selective scan without keeping its states, which are N times as large as anything else.

    They exist for one chunk of time at a time: forward keeps the state in which each chunk starts, and backward
    computes the others again from it.
    """

    @staticmethod
    def forward(ctx, u, dt, B, C, A_log, h):
        y = torch.empty_like(u)  # whole from the start: pieces would come to lie between the chunks' large buffers
        starts = h.new_empty(-(-u.shape[1] // CHUNK), *h.shape)
        cuts = [x.split(CHUNK, dim=1) for x in (u, dt, B, C, y)]
        for start, u_k, dt_k, B_k, C_k, y_k in zip(starts, *cuts, strict=True):
            start.copy_(h)
            y_part, h = _scan_chunk(u_k, dt_k, B_k, C_k, A_log, h)
            y_k.copy_(y_part)
        ctx.save_for_backward(u, dt, B, C, A_log, starts)
        return y, h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y, grad_h):
        *sequences, A_log, starts = ctx.saved_tensors
        grads, grad_A_log = [torch.empty_like(x) for x in sequences], torch.zeros_like(A_log)
        cuts = [x.split(CHUNK, dim=1) for x in (*sequences, grad_y, *grads)]
        for start, *chunk in reversed(list(zip(starts, *cuts, strict=True))):
            inputs = [x.detach().requires_grad_() for x in (*chunk[:4], A_log, start)]
            with torch.enable_grad():
                outputs = _scan_chunk(*inputs)
            *parts, grad_A_log_part, grad_h = torch.autograd.grad(outputs, inputs, (chunk[4], grad_h))
            for grad, part in zip(chunk[5:], parts, strict=True):
                grad.copy_(part)
            grad_A_log += grad_A_log_part
        return *grads, grad_A_log, grad_h


def _scan_chunk(u: Tensor, dt: Tensor, B: Tensor, C: Tensor, A_log: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    a, b = discretise(u, dt, B, A_log)  # (batch, K, N, E)
    h, last = linear_scan(a.flatten(2), b.flatten(2), h0.flatten(1))
    return (C[:, :, None] @ h.view_as(b)).squeeze(2), last.view_as(h0)
