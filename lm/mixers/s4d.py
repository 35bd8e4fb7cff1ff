"""S4D: a diagonal state space model with fixed dynamics (arXiv 2206.11893), initialised as S4D-Lin.

    h_t = exp(dt A) h_{t-1} + u_t      y_t = 2 Re(C' h_t) + skip u_t      C' = C (exp(dt A) - 1) / A

Every channel has N / 2 complex states, one of each conjugate pair; the input matrix B of the zero-order hold is part of
C'. A and C' do not depend on the input: over a whole sequence, y is a convolution of u with 2 Re(C' exp(dt A)^t).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, glu

from lm.mixers.base import Mixer, State
from lm.ops import Linear
from lm.recurrence.portable import compute_type, widen

CHUNK = 512
"""Steps of one FFT. Longer sequences carry the state from chunk to chunk, in constant memory."""


class S4D(Mixer):
    """Diagonal state space model of every channel -> GELU -> projection with a gated linear unit.

    Args:
        width: channels of input and output, D.
        d_state: real numbers N of each channel's state, even.

    The state is (h,), float32 (B, D, N), or float64 in a float64 model: N / 2 real parts, then N / 2 imaginary parts.
    """

    def __init__(self, width: int, d_state: int = 64) -> None:
        super().__init__()
        if d_state % 2:
            raise ValueError(f"d_state {d_state} must be even for s4d, whose states are complex numbers")
        N = d_state // 2
        self.log_dt = nn.Parameter(torch.empty(width).uniform_(math.log(1e-3), math.log(1e-1)))
        self.A_real_log = nn.Parameter(torch.full((width, N), math.log(0.5)))
        self.A_imag = nn.Parameter(math.pi * torch.arange(float(N)).repeat(width, 1))
        self.C = nn.Parameter(torch.randn(width, d_state) * 0.5**0.5)  # complex normal of variance 1
        self.skip = nn.Parameter(torch.randn(width))
        self.output = Linear(width, 2 * width)

    def init_state(self, batch: int) -> State:
        return (self.C.new_zeros(batch, *self.C.shape, dtype=compute_type(self.C)),)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        (h,) = self.init_state(x.shape[0]) if state is None else state
        u = widen(x).permute(2, 0, 1)  # (D, B, T): every product below is one per channel
        h = to_complex(h.transpose(0, 1))  # (D, B, N / 2)
        with torch.autocast(x.device.type, enabled=False):
            a, C = self.discretise()
            table = to_real(powers(a, min(x.shape[1], CHUNK)), dim=1)  # (D, N, T + 1)
            kernel = reader(C)[:, None] @ table[..., :-1]  # (D, 1, T)
            ys = []
            for chunk in u.split(CHUNK, dim=2):
                T = chunk.shape[2]
                past = reader(C[:, None] * h) @ table[..., 1 : T + 1]  # what h contributes, (D, B, T)
                ys.append(past + convolve(chunk, kernel[..., :T]))
                h = to_complex(table[..., T])[:, None] * h + to_complex(chunk.flip(2) @ table[..., :T].mT)
        y = torch.cat(ys, dim=2).permute(1, 2, 0)  # (B, T, D)
        return self.mix(x, y), (to_real(h, dim=-1).transpose(0, 1),)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        a, C = self.discretise()
        h = a * to_complex(state[0]) + widen(x)[..., None]
        return self.mix(x, 2 * (C * h).real.sum(-1)), (to_real(h, dim=-1),)

    def discretise(self) -> tuple[Tensor, Tensor]:
        """exp(dt A) and C', complex (D, N / 2)."""
        A = torch.complex(-widen(self.A_real_log).exp(), widen(self.A_imag))
        change = torch.expm1(widen(self.log_dt).exp()[:, None] * A)  # exp(dt A) - 1, without its cancellation
        return change + 1, to_complex(widen(self.C)) * change / A

    def mix(self, x: Tensor, y: Tensor) -> Tensor:
        """The layers after the state space: x is the mixer's input, y the output of the states, (..., D) each."""
        y = gelu(torch.addcmul(y, x, self.skip)).to(x.dtype)
        return glu(self.output(y), dim=-1)

    def flops(self, context: int) -> float:
        """Per channel the FFT and its inverse, the product of the spectra, and the last state; the kernel is shared."""
        per_channel = 10.0 * math.log2(2 * min(context, CHUNK)) + 6.0 + 2.0 * self.C.shape[1]
        return 2.0 * self.output.weight.numel() + per_channel * self.C.shape[0]


def powers(a: Tensor, T: int) -> Tensor:
    """a^0 ... a^T, complex (D, N / 2) -> (D, N / 2, T + 1), as the products of two short tables.

    These are powers of the rounded a, as in `step`; exp(t dt A) would differ by t times a's rounding error. The tables
    are computed on the CPU: Apple's GPUs have no float64.
    """
    K = math.isqrt(T) + 1
    fine = _powers(a.cpu().to(torch.complex128), K)
    coarse = _powers(fine[..., -1] * a.cpu(), K)  # of a^K
    fine, coarse = (table.to(a.dtype).to(a.device) for table in (fine, coarse))
    return (coarse[..., None] * fine[..., None, :]).flatten(-2)[..., : T + 1]


def _powers(a: Tensor, K: int) -> Tensor:
    """a^0 ... a^(K - 1) by doubling, which loses log2 K bits: for complex128 and small K only."""
    table = torch.ones_like(a)[..., None]
    while table.shape[-1] < K:
        table = torch.cat([table, table * (table[..., -1] * a)[..., None]], dim=-1)
    return table[..., :K]


def convolve(u: Tensor, kernel: Tensor) -> Tensor:
    """The causal convolution of u (D, B, T) and kernel (D, 1, T), by an FFT that is too long to wrap around."""
    n = 2 * u.shape[-1]
    return torch.fft.irfft(torch.fft.rfft(u, n) * torch.fft.rfft(kernel, n), n)[..., : u.shape[-1]]


def to_complex(x: Tensor) -> Tensor:
    """Real parts followed by imaginary parts (..., N) -> (..., N / 2)."""
    return torch.complex(*x.chunk(2, dim=-1))


def to_real(z: Tensor, dim: int) -> Tensor:
    """Real parts followed by imaginary parts, along `dim`."""
    return torch.cat([z.real, z.imag], dim=dim)


def reader(z: Tensor) -> Tensor:
    """The row r (..., N) with r . [Re p, Im p] = 2 Re(z . p), for z and p (..., N / 2)."""
    return 2 * torch.cat([z.real, -z.imag], dim=-1)
