"""The kernels of the recurrence in PyTorch operations: they work on every device, for every type.

Each function is the forward or the backward pass of one operation, without autograd; `lm.recurrence` registers them as
differentiable operations. All compute in float32, or in float64 for float64 inputs. `lm.recurrence.cpu`, `selective`
and `cuda` have functions of the same names with the same arguments.
"""

import math
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus


class Kind(IntEnum):
    """The inputs of a scan, (B, T, D) each. scan.c and cuda.py use the same numbers."""

    LINEAR = 0
    """a and b of h_t = a_t h_{t-1} + b_t: two tensors"""
    MINGRU = 1
    """gate logits k and candidates c, side by side in one tensor, the projection (B, T, 2D)"""
    MINLSTM = 2
    """logits of the forget gate f and the input gate i, and candidates c, in a projection (B, T, 3D)"""

    def split(self, x: Sequence[Tensor]) -> Sequence[Tensor]:
        """The inputs, or their gradients, as tensors (B, T, D)."""
        return x if self == Kind.LINEAR else x[0].chunk(self + 1, dim=-1)


def compute_type(x: Tensor) -> torch.dtype:
    """The type of gates and states for inputs of x's type: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def widen(x: Tensor) -> Tensor:
    """x in its `compute_type`."""
    return x.to(compute_type(x))


def rows(x: Tensor) -> Tensor:
    """x (B, T, D) with contiguous channels. Of an expanded tensor, such as sum's gradient, only one row is copied."""
    if x.stride(-1) == 1 or x.shape[-1] == 1:
        return x
    once = [slice(1) if stride == 0 else slice(None) for stride in x.stride()[:2]]
    return x[tuple(once)].contiguous().expand(x.shape)


def empty(like: Tensor) -> Tensor:
    """An uninitialised, contiguous tensor of the same shape and type."""
    return torch.empty_like(like, memory_format=torch.contiguous_format)


# ---------------------------------------------------------------- linear scan, minGRU, minLSTM


def scan(a: Tensor, b: Tensor, h0: Tensor | None) -> Tensor:
    """h_t = a_t h_{t-1} + b_t over (B, T, D), in about 2 sqrt(T) large operations.

    Time is cut into C chunks of K steps. All chunks advance together from a zero state, along with the running product
    of a. Then the true state is carried over the C chunk ends, and each chunk adds its product times that state.
    """
    B, T, D = b.shape
    K = math.isqrt(T - 1) + 1
    C = -(-T // K)
    a, b = (pad(x, (0, 0, 0, C * K - T)).view(B, C, K, D) for x in (a, b))
    h, product = torch.empty_like(b), torch.empty_like(a)
    h[:, :, 0], product[:, :, 0] = b[:, :, 0], a[:, :, 0]
    for k in range(1, K):
        torch.addcmul(b[:, :, k], a[:, :, k], h[:, :, k - 1], out=h[:, :, k])
        torch.mul(a[:, :, k], product[:, :, k - 1], out=product[:, :, k])
    carry = b.new_zeros(B, C, D)  # the state in which each chunk starts
    if h0 is not None:
        carry[:, 0] = h0
    for c in range(1, C):
        torch.addcmul(h[:, c - 1, -1], product[:, c - 1, -1], carry[:, c - 1], out=carry[:, c])
    return h.addcmul_(product, carry[:, :, None]).view(B, C * K, D)[:, :T]


def scan_adjoint(a: Tensor, grad_h: Tensor, grad_last: Tensor) -> Tensor:
    """The whole gradient of each h_t: s_t = grad_h_t + a_{t+1} s_{t+1}, the same scan backwards in time."""
    grad_h = grad_h.to(a.dtype, copy=True)
    grad_h[:, -1] += grad_last
    a_next = pad(a[:, 1:], (0, 0, 0, 1))
    return scan(a_next.flip(1), grad_h.flip(1), None).flip(1)


def shift(h: Tensor, h0: Tensor | None) -> Tensor:
    """h_{t-1} for every t: (B, T, D), starting with h0, or zero."""
    first = torch.zeros_like(h[:, :1]) if h0 is None else h0[:, None].to(h.dtype)
    return torch.cat([first, h[:, :-1]], dim=1)


def g(c: Tensor) -> Tensor:
    """The candidate's activation (arXiv 2410.01201, appendix B): c + 0.5 for c >= 0, else sigmoid(c). Any shape."""
    return torch.where(c >= 0, c + 0.5, torch.sigmoid(c))


def gate_logits(gates: Sequence[Tensor]) -> Tensor:
    """k with z = sigmoid(k), from minGRU's (k,) or minLSTM's (f, i): z = sigmoid(i) / (sigmoid(f) + sigmoid(i))."""
    if len(gates) == 1:
        return gates[0]
    f, i = gates
    return softplus(-f) - softplus(-i)


def _gates(gates: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """z and 1 - z to the last digits: 1 - z is subtracted only where z is small."""
    k = gate_logits(gates)
    z = torch.sigmoid(k)
    return z, torch.where(k < 0, 1 - z, torch.sigmoid(-k))


def scan_forward(kind: Kind, x: Sequence[Tensor], h0: Tensor | None) -> tuple[Tensor, Tensor]:
    """(h, h_last) of a scan: h (B, T, D) in the type of the inputs x, (a, b) or (projection,); h0 and h_last (B, D)."""
    *gates, b = kind.split([widen(part) for part in x])
    if kind == Kind.LINEAR:
        a = gates[0]
    else:
        z, a = _gates(gates)
        b = z * g(b)
    h = scan(a, b, h0)
    return h.to(x[0].dtype, copy=True), h[:, -1].clone()


def scan_backward(
    kind: Kind, x: Tensor, grads: Sequence[Tensor], h: Tensor, h0: Tensor | None, grad_h: Tensor, grad_last: Tensor
) -> Tensor:
    """Write the gradients of a and b, or of the projection, into `grads`, and return that of h0.

    x is a, or the projection: forward keeps nothing else but h, and the gates are computed again.
    """
    wide = widen(x)
    *gates, c = kind.split([wide])
    z, a = (None, wide) if kind == Kind.LINEAR else _gates(gates)
    s = scan_adjoint(a, grad_h, grad_last)
    before = shift(h.to(s.dtype), h0)
    if z is None:
        values = [s * before, s]
    else:
        sigmoid_c = torch.sigmoid(c)
        slope = torch.where(c >= 0, 1.0, sigmoid_c * (1 - sigmoid_c))
        grad_k = s * (g(c) - before) * z * a
        values = [grad_k, s * z * slope]
        if kind == Kind.MINLSTM:
            f, i = gates
            values[:1] = -grad_k * torch.sigmoid(-f), grad_k * torch.sigmoid(-i)
    for grad, value in zip(kind.split(grads), values, strict=True):
        grad.copy_(value)
    return a[:, 0] * s[:, 0]


# ---------------------------------------------------------------- selective scan


CHUNK = 32
"""Steps of the selective scan whose states (B, CHUNK, N, D) are in memory at a time; the same as in selective.c."""


def starts_shape(u: Tensor, A: Tensor) -> torch.Size:
    """Shape of the states before every CHUNK-th step, which are kept for backward: (B, ceil(T / CHUNK), N, D)."""
    return torch.Size([u.shape[0], -(-u.shape[1] // CHUNK), *A.shape])


def _chunks(*sequences: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(x.split(CHUNK, dim=1) for x in sequences), strict=True))


def _selective_states(dt: Tensor, A: Tensor, B: Tensor, x: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """exp(dt A) and h of a chunk, both (B, K, N, D); x = dt u."""
    a = torch.exp(dt[:, :, None] * A)
    b = B[..., None] @ x[:, :, None]
    return a, scan(a.flatten(2), b.flatten(2), start.flatten(1)).view_as(a)


def selective_forward(inputs: Sequence[Tensor], h0: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(y, h_last, starts) of the scan of u, delta, A, B, C and skip; backward begins from the states in `starts`."""
    u, delta, A, B, C, skip = inputs
    starts, y = A.new_empty(starts_shape(u, A)), empty(u)
    h = A.new_zeros(starts[:, 0].shape) if h0 is None else h0
    for start, *chunk, y_k in zip(starts.unbind(1), *zip(*_chunks(u, delta, B, C, y), strict=True), strict=True):
        start.copy_(h)
        u_k, delta_k, B_k, C_k = (x.to(A.dtype) for x in chunk)
        dt = softplus(delta_k)
        _, hs = _selective_states(dt, A, B_k, dt * u_k, h)
        y_k.copy_((C_k[:, :, None] @ hs).squeeze(2) + u_k * skip)
        h = hs[:, -1]
    return y, h.clone(), starts


def selective_backward(
    inputs: Sequence[Tensor], starts: Tensor, grad_y: Tensor, grad_last: Tensor | None
) -> list[Tensor]:
    """Gradients of u, delta, A, B, C, skip and h0, each in its tensor's type and shape."""
    u, delta, A, B, C, skip = inputs
    grads = [empty(x) for x in (u, delta, B, C)]
    grad_A, grad_skip = torch.zeros_like(A), torch.zeros_like(skip)
    grad_h = torch.zeros_like(starts[:, 0]) if grad_last is None else grad_last
    chunks = _chunks(u, delta, B, C, grad_y, *grads)
    for start, chunk in reversed(list(zip(starts.unbind(1), chunks, strict=True))):
        u_k, delta_k, B_k, C_k, grad_y_k = (x.to(A.dtype) for x in chunk[:5])
        dt = softplus(delta_k)
        x = dt * u_k
        a, h = _selective_states(dt, A, B_k, x, start)
        grad_b = grad_y_k[:, :, None] * C_k[..., None]  # the gradient of h_t from y_t, and then from all that follows
        grad_b = scan_adjoint(a.flatten(2), grad_b.flatten(2), grad_h.flatten(1)).view_as(a)
        grad_a = grad_b * shift(h, start) * a  # of dt A
        grad_x = (B_k[:, :, None] @ grad_b).squeeze(2)
        grad_dt = (grad_a * A).sum(2) + grad_x * u_k
        parts = (
            grad_x * dt + grad_y_k * skip,
            grad_dt * torch.sigmoid(delta_k),
            (grad_b @ x[..., None]).squeeze(-1),
            (h @ grad_y_k[..., None]).squeeze(-1),
        )
        for grad, part in zip(chunk[5:], parts, strict=True):
            grad.copy_(part)
        grad_A += (grad_a * dt[:, :, None]).sum((0, 1))
        grad_skip += (grad_y_k * u_k).sum((0, 1))
        grad_h = a[:, 0] * grad_b[:, 0]
    grad_u, grad_delta, grad_B, grad_C = grads
    return [grad_u, grad_delta, grad_A, grad_B, grad_C, grad_skip, grad_h]
