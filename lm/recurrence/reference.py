"""Plain twins of the recurrence: step-by-step loops that are obviously right, and the paper's log-space form.

Nothing here is fast and nothing here is used by a model; tests and benchmarks compare against it.
Shapes: sequences (B, T, D), states (B, D). Autograd differentiates all of it.

The paper is "Were RNNs All We Needed?" (arXiv 2410.01201); its appendix B gives the log-space form.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

Scan = tuple[Tensor, Tensor]


def g(x: Tensor) -> Tensor:
    """The paper's positive activation: x + 0.5 for x >= 0, else sigmoid(x). Any shape."""
    return torch.where(x >= 0, x + 0.5, torch.sigmoid(x))


def linear_scan(a: Tensor, b: Tensor, h0: Tensor | None = None) -> Scan:
    """h_t = a_t h_{t-1} + b_t, one step after the other. Returns h (B, T, D) and its last row (B, D)."""
    h = torch.zeros_like(b[:, 0]) if h0 is None else h0
    steps = []
    for a_t, b_t in zip(a.unbind(1), b.unbind(1), strict=True):
        h = a_t * h + b_t
        steps.append(h)
    return torch.stack(steps, dim=1), h


def mingru_scan(projection: Tensor, h0: Tensor | None = None) -> Scan:
    """minGRU on projection (B, T, 2D) = [gate logits | candidate]: h_t = (1 - z_t) h_{t-1} + z_t g(c_t)."""
    k, c = projection.chunk(2, dim=-1)
    z = torch.sigmoid(k)
    return linear_scan(1 - z, z * g(c), h0)


def minlstm_scan(projection: Tensor, h0: Tensor | None = None) -> Scan:
    """minLSTM on projection (B, T, 3D) = [f | i | c], with the gates normalised to f + i = 1."""
    f, i, c = projection.chunk(3, dim=-1)
    f, i = torch.sigmoid(f), torch.sigmoid(i)
    return linear_scan(f / (f + i), i / (f + i) * g(c), h0)


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor, h0: Tensor | None = None
) -> Scan:
    """Mamba's scan (arXiv 2312.00752, algorithm 2), step by step: dt = softplus(delta),
    h_t = exp(dt A) h_{t-1} + dt B u, y_t = C h_t + skip u. Shapes as in `lm.recurrence.selective_scan`."""
    h = u.new_zeros(u.shape[0], *A.shape) if h0 is None else h0
    steps = []
    for u_t, delta_t, B_t, C_t in zip(*(x.unbind(1) for x in (u, delta, B, C)), strict=True):
        dt = softplus(delta_t)
        h = torch.exp(dt[:, None] * A) * h + B_t[..., None] * (dt * u_t)[:, None]
        steps.append((C_t[..., None] * h).sum(1) + skip * u_t)
    return torch.stack(steps, dim=1), h


def log_g(x: Tensor) -> Tensor:
    """log g(x), the form in which the paper uses it."""
    return torch.where(x >= 0, (x.relu() + 0.5).log(), -softplus(-x))


def log_space_scan(log_a: Tensor, log_b: Tensor, log_h0: Tensor) -> Tensor:
    """The paper's parallel scan (Heinsen's): cumsum and logcumsumexp. An oracle for short sequences only:
    in float32 its gradients lose all their digits around T = 4096."""
    a_star = torch.nn.functional.pad(log_a.cumsum(dim=1), (0, 0, 1, 0))
    log_h = a_star + torch.logcumsumexp(torch.cat([log_h0[:, None], log_b], dim=1) - a_star, dim=1)
    return log_h[:, 1:].exp()


def mingru_log_space(projection: Tensor, h0: Tensor) -> Tensor:
    """minGRU as the paper trains it; h0 (B, D) must be positive. Returns h (B, T, D)."""
    k, c = projection.chunk(2, dim=-1)
    return log_space_scan(logsigmoid(-k), logsigmoid(k) + log_g(c), h0.log())


def minlstm_log_space(projection: Tensor, h0: Tensor) -> Tensor:
    """minLSTM as the paper trains it; h0 (B, D) must be positive. Returns h (B, T, D)."""
    f, i, c = projection.chunk(3, dim=-1)
    k = softplus(-f) - softplus(-i)
    return log_space_scan(-softplus(k), -softplus(-k) + log_g(c), h0.log())
