"""The recurrence in plain torch: the path that always works, on every device.

Each function is one kernel (a forward or a backward) without autograd; `lm.recurrence` gives them their gradients.
They compute in float32, or float64 for float64 inputs, and return `h` in the type of the input.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus


def compute_type(x: Tensor) -> torch.dtype:
    """The type that states and gates are computed in: float32, or float64 for float64 inputs."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def scan(a: Tensor, b: Tensor, h0: Tensor | None) -> Tensor:
    """h_t = a_t h_{t-1} + b_t over (B, T, D), in about 2 sqrt(T) large operations.

    Time is cut into C chunks of K steps. All chunks advance together from a zero state, with the running product of
    a beside them; then the true state is carried over the C chunk ends, and each chunk adds its share of it.
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
    """The gradient that reaches each h_t: s_t = grad_h_t + a_{t+1} s_{t+1}, the same scan backwards in time."""
    grad_h = grad_h.to(a.dtype, copy=True)
    grad_h[:, -1] += grad_last
    a_next = pad(a[:, 1:], (0, 0, 0, 1))
    return scan(a_next.flip(1), grad_h.flip(1), None).flip(1)


def shift(h: Tensor, h0: Tensor | None) -> Tensor:
    """h_{t-1} for every t: (B, T, D), starting with h0, or zero."""
    first = torch.zeros_like(h[:, :1]) if h0 is None else h0[:, None].to(h.dtype)
    return torch.cat([first, h[:, :-1]], dim=1)


def linear_forward(a: Tensor, b: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor]:
    """(h, h_last) of the linear scan; a, b (B, T, D), h0 (B, D)."""
    h = scan(a.to(compute_type(a)), b.to(compute_type(b)), h0)
    return h.to(b.dtype, copy=True), h[:, -1].clone()


def linear_backward(
    a: Tensor, h: Tensor, h0: Tensor | None, grad_h: Tensor, grad_last: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b (in their type) and h0."""
    wide = a.to(compute_type(a))
    s = scan_adjoint(wide, grad_h, grad_last)
    grad_a = s * shift(h.to(wide.dtype), h0)
    return grad_a.to(a.dtype), s.to(a.dtype, copy=True), wide[:, 0] * s[:, 0]


def _gate_logits(gates: tuple[Tensor, ...]) -> Tensor:
    """k such that z = sigmoid(k). minGRU has it as it is; minLSTM's i / (f + i) is the sigmoid of log i - log f."""
    if len(gates) == 1:
        return gates[0]
    f, i = gates
    return softplus(-f) - softplus(-i)


def _gates(k: Tensor) -> tuple[Tensor, Tensor]:
    """z = sigmoid(k) and 1 - z, each in the form that keeps its digits: neither cancels, and z << 1 rounds once."""
    z = torch.sigmoid(k)
    return z, torch.where(k < 0, 1 - z, torch.sigmoid(-k))


def _gate_gradients(gates: tuple[Tensor, ...], grad_k: Tensor) -> tuple[Tensor, ...]:
    if len(gates) == 1:
        return (grad_k,)
    f, i = gates
    return -grad_k * torch.sigmoid(-f), grad_k * torch.sigmoid(-i)


def cell_forward(projection: Tensor, h0: Tensor | None, parts: int) -> tuple[Tensor, Tensor]:
    """(h, h_last) of minGRU (2 parts) or minLSTM (3 parts); projection (B, T, parts * D), h0 (B, D)."""
    *gates, c = projection.to(compute_type(projection)).chunk(parts, dim=-1)
    z, a = _gates(_gate_logits(tuple(gates)))
    candidate = torch.where(c >= 0, c + 0.5, torch.sigmoid(c))
    h = scan(a, z * candidate, h0)
    return h.to(projection.dtype, copy=True), h[:, -1].clone()


def cell_backward(
    projection: Tensor, h: Tensor, h0: Tensor | None, grad_h: Tensor, grad_last: Tensor, parts: int
) -> tuple[Tensor, Tensor]:
    """Gradients of the projection (one tensor, its shape and type) and of h0. Recomputes the gates."""
    *gates, c = projection.to(compute_type(projection)).chunk(parts, dim=-1)
    z, a = _gates(_gate_logits(tuple(gates)))
    sigmoid_c = torch.sigmoid(c)
    s = scan_adjoint(a, grad_h, grad_last)
    candidate = torch.where(c >= 0, c + 0.5, sigmoid_c)
    slope = torch.where(c >= 0, 1.0, sigmoid_c * (1 - sigmoid_c))
    grad_k = s * (candidate - shift(h.to(s.dtype), h0)) * z * a
    grads = (*_gate_gradients(tuple(gates), grad_k), s * z * slope)
    return torch.cat(grads, dim=-1).to(projection.dtype), a[:, 0] * s[:, 0]


CHUNK = 32
"""Steps of the selective scan whose states (B, CHUNK, N, D) are in memory at a time; selective.c has the same."""


def starts_shape(u: Tensor, A: Tensor) -> torch.Size:
    """Of the states before every CHUNK-th step, kept for backward: (B, ceil(T / CHUNK), N, D)."""
    return torch.Size([u.shape[0], -(-u.shape[1] // CHUNK), *A.shape])


def _chunks(*sequences: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(x.split(CHUNK, dim=1) for x in sequences), strict=True))


def _selective_states(dt: Tensor, A: Tensor, B: Tensor, x: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """exp(dt A) and h of a chunk, both (B, K, N, D); x = dt u."""
    a = torch.exp(dt[:, :, None] * A)
    b = B[..., None] @ x[:, :, None]
    return a, scan(a.flatten(2), b.flatten(2), start.flatten(1)).view_as(a)


def selective_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor, h0: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, h_last, starts) of the selective scan; starts are the states that backward begins with again."""
    starts, y = A.new_empty(starts_shape(u, A)), torch.empty_like(u, memory_format=torch.contiguous_format)
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
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skip: Tensor,
    starts: Tensor,
    grad_y: Tensor,
    grad_last: Tensor | None,
) -> tuple[Tensor, ...]:
    """Gradients of u, delta, A, B, C, skip and h0, each in its tensor's type and shape."""
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta, B, C)]
    grad_A, grad_skip = torch.zeros_like(A), torch.zeros_like(skip)
    grad_h = torch.zeros_like(starts[:, 0]) if grad_last is None else grad_last
    chunks = _chunks(u, delta, B, C, grad_y, *grads)
    for start, chunk in reversed(list(zip(starts.unbind(1), chunks, strict=True))):
        u_k, delta_k, B_k, C_k, grad_y_k = (x.to(A.dtype) for x in chunk[:5])
        dt = softplus(delta_k)
        x = dt * u_k
        a, h = _selective_states(dt, A, B_k, x, start)
        grad_b = grad_y_k[:, :, None] * C_k[..., None]  # what reaches h_t from y_t, and then all that reaches it
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
    return grad_u, grad_delta, grad_A, grad_B, grad_C, grad_skip, grad_h
