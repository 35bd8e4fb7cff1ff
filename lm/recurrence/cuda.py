"""The recurrence on a GPU: Triton kernels with the interface of `lm.recurrence.portable`.

No GPU has run this code yet. Its values are tested in Triton's interpreter, and it was compiled for an H100 (sm_90)
with Triton 3.6 and 3.9; the constants that decide about speed (`HAND` to `BLOCKS`, and `plan`) are estimates.

One warp walks over time for one row of the batch and one block of channels, in float32 registers. Each lane keeps to
its own channels, so nothing is ever exchanged; what hides the memory's latency is that the next rows of every input
are asked for before the present ones are worked on. Where rows and channels make too few warps to keep the memory
busy, time is cut into chunks as well:

    1. each chunk but the last is walked from a zero state, and leaves where it ends and its product of a;
    2. over the chunks that is h_c = product_c h_{c-1} + end_c: the linear scan again, by the same kernel;
    3. each chunk is walked from the state it really starts in.

The backward kernel is the same walk from the last step to the first. Importing this module imports Triton.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lm.recurrence import portable

LINEAR, MINGRU, MINLSTM = (tl.constexpr(kind) for kind in range(3))
HAND = 32  # registers of a lane for inputs in hand, and as many for those on their way
STEPS = 16  # most steps worked on at once: the code grows with them
WARPS = 4  # per multiprocessor: as many are wanted
CHUNK = 256  # steps for which a chunk is worth its share of the additional launches
BLOCKS = (64, 32)  # channels per warp
OPTIONS = {"num_warps": 1, "enable_fp_fusion": True}  # of fusion Triton 3.9 wants to be told: its default will change


# ---------------------------------------------------------------- one step, in registers


@triton.jit
def _fade(x):
    """e^-|x|, which cannot overflow. The power of two is the hardware's own, one instruction."""
    return tl.exp2(tl.abs(x) * -1.4426950408889634)


@triton.jit
def _sigmoid(x):
    e = _fade(x)
    return tl.where(x >= 0, 1.0, e) / (1 + e)


@triton.jit
def _g(c):
    """The candidate's activation and its slope. Both sides of zero are finite on either side."""
    e = _fade(c)
    share = 1 / (1 + e)
    return tl.where(c >= 0, c + 0.5, e * share), tl.where(c >= 0, 1.0, e * share * share)


@triton.jit
def _shares(x, KIND: tl.constexpr):
    """a = sigmoid(-k) and z = sigmoid(k) from the gate logits, without a difference: both are right to the last digits.

    Past and new are weighed against the heavier of them. minGRU weighs 1 : e^k. minLSTM weighs sigmoid(f) : sigmoid(i),
    where sigmoid(f) = e^min(f, 0) / (1 + e^-|f|).
    """
    if KIND == MINGRU:
        odds = -x[0].to(tl.float32)
    else:
        f, i = x[0].to(tl.float32), x[1].to(tl.float32)
        odds = tl.minimum(f, 0.0) - tl.minimum(i, 0.0)
    e = _fade(odds)
    past, new = tl.where(odds >= 0, 1.0, e), tl.where(odds >= 0, e, 1.0)
    if KIND == MINLSTM:
        past, new = past * (1 + _fade(i)), new * (1 + _fade(f))
    share = 1 / (past + new)
    return past * share, new * share


@triton.jit
def _decay(x, KIND: tl.constexpr):
    """a_t from a row of the inputs."""
    if KIND == LINEAR:
        return x[0].to(tl.float32)
    else:
        a, _ = _shares(x, KIND)
        return a


@triton.jit
def _coefficients(x, KIND: tl.constexpr):
    """a_t and b_t from a row of all inputs."""
    if KIND == LINEAR:
        return x[0].to(tl.float32), x[1].to(tl.float32)
    else:
        a, z = _shares(x, KIND)
        candidate, _ = _g(x[KIND].to(tl.float32))
        return a, z * candidate


@triton.jit
def _gradients(x, s, before, KIND: tl.constexpr):
    """a_t, and the gradients of all inputs, from the gradient s that reaches h_t and the state h_{t-1} before."""
    if KIND == LINEAR:
        return x[0].to(tl.float32), (s * before, s)
    else:
        a, z = _shares(x, KIND)
        candidate, slope = _g(x[KIND].to(tl.float32))
        grad_k = s * (candidate - before) * z * a
        if KIND == MINGRU:
            return a, (grad_k, s * z * slope)
        else:
            grad_f, grad_i = -grad_k * _sigmoid(-x[0].to(tl.float32)), grad_k * _sigmoid(-x[1].to(tl.float32))
            return a, (grad_f, grad_i, s * z * slope)


# ---------------------------------------------------------------- walking over time


@triton.jit
def _place(D, chunks, length, T, BLOCK: tl.constexpr):
    """What this program does: its channels, its row of the batch, its chunk, and the chunk's steps."""
    blocks = tl.cdiv(D, BLOCK)
    program = tl.program_id(0).to(tl.int64)  # so is all that follows: strides times steps may be large
    d = program % blocks * BLOCK + tl.arange(0, BLOCK)
    chunk = program // blocks % chunks
    begin = chunk * length
    return d, program // blocks // chunks, chunk, begin, tl.minimum(begin + length, T)


@triton.jit
def _within(u, left, live):
    """The live channels if u < left, else none. Made a vector first: the interpreter cannot spread a comparison."""
    return live & (tl.full(live.shape, u, tl.int32) < left)


@triton.jit
def _seek(tensors, strides, batch, t, d):
    """Pointers to the channels d of step t in each tensor."""
    pointers = ()
    for i in tl.static_range(len(tensors)):
        pointers += (tensors[i] + batch * strides[i][0] + t * strides[i][1] + d,)  # type: ignore[assignment]
    return pointers


@triton.jit
def _ask(pointers, strides, t, left, live, SIGN: tl.constexpr, STEPS: tl.constexpr):
    """The rows of the steps from t on, each a tuple with a value per tensor; SIGN is the direction of time."""
    rows = ()
    for u in tl.static_range(STEPS):
        row = ()
        for i in tl.static_range(len(pointers)):
            # Left as one product, or the compiler keeps an offset for every u in registers.
            offset = SIGN * (t + u) * strides[i][1]
            row += (tl.load(pointers[i] + offset, mask=_within(u, left, live), other=0.0),)  # type: ignore[assignment]
        rows += (row,)  # type: ignore[assignment]
    return rows


@triton.jit
def _put(pointers, strides, t, u, values, mask, SIGN: tl.constexpr):
    for i in tl.static_range(len(pointers)):
        tl.store(pointers[i] + SIGN * (t + u) * strides[i][1], values[i], mask=mask)


@triton.jit
def _first(start, slot, live):
    """The state in which a walk starts; none is zero."""
    if start is None:
        return tl.zeros(live.shape, tl.float32)
    else:
        return tl.load(start + slot, mask=live, other=0.0)


@triton.jit(do_not_specialize=["T", "chunks", "length"])
def _forward(
    x,
    x_strides,
    h,
    h_strides,
    start,
    end,
    product,
    T,
    D,
    chunks,
    length,
    KIND: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Walk all chunks: x, a tuple of (B, T, D), to h, a tuple of one (B, T, D), and end (B, D).

    start is (B, chunks, D) or None. With a `product`, h is empty, and end and product are (B, chunks, D).
    """
    d, batch, chunk, begin, stop = _place(D, chunks, length, T, BLOCK)
    live = d < D
    slot = (batch * chunks + chunk) * D + d
    x, h = _seek(x, x_strides, batch, 0, d), _seek(h, h_strides, batch, 0, d)
    state = _first(start, slot, live)
    growth = tl.full((BLOCK,), 1.0, tl.float32)
    rows = _ask(x, x_strides, begin, (stop - begin).to(tl.int32), live, 1, STEPS)
    for t in range(begin, stop, STEPS):
        left = (stop - t).to(tl.int32)
        ahead = _ask(x, x_strides, t + STEPS, left - STEPS, live, 1, STEPS)
        for u in tl.static_range(STEPS):
            inside = _within(u, left, live)
            a, b = _coefficients(rows[u], KIND)
            state = tl.where(inside, a * state + b, state)
            growth = tl.where(inside, a * growth, growth)
            _put(h, h_strides, t, u, (state,), inside, 1)
        rows = ahead
    _leave(state, growth, end, product, slot, batch * D + d, stop == T, live)


@triton.jit(do_not_specialize=["T", "chunks", "length"])
def _backward(
    x,
    x_strides,
    grad_h,
    grad_h_strides,
    h,
    h_strides,
    h0,
    grad,
    grad_strides,
    start,
    end,
    product,
    T,
    D,
    chunks,
    length,
    KIND: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Walk all chunks back in time; steps, chunks and states are counted from the end.

    x is the inputs, a tuple of (B, T, D) (of the linear scan a alone), grad_h and h tuples of one, grad a tuple of all
    inputs' gradients, h0 (B, D) or None; start, end and product as in `_forward`. With a `product`, x is the gates
    alone, and h and grad are empty.
    """
    d, batch, chunk, begin, stop = _place(D, chunks, length, T, BLOCK)
    live = d < D
    slot = (batch * chunks + chunk) * D + d
    x, grad_h = _seek(x, x_strides, batch, T - 1, d), _seek(grad_h, grad_h_strides, batch, T - 1, d)
    h, grad = _seek(h, h_strides, batch, T - 2, d), _seek(grad, grad_strides, batch, T - 1, d)
    # Rows of h are one step before the others, and before the first is h0.
    h_left = (tl.minimum(stop, T - 1) - begin).to(tl.int32)
    h0 = _first(h0, batch * D + d, live)
    state = _first(start, slot, live)
    growth = tl.full((BLOCK,), 1.0, tl.float32)
    left = (stop - begin).to(tl.int32)
    x_rows = _ask(x, x_strides, begin, left, live, -1, STEPS)
    s_rows = _ask(grad_h, grad_h_strides, begin, left, live, -1, STEPS)
    h_rows = _ask(h, h_strides, begin, h_left, live, -1, STEPS)
    for t in range(begin, stop, STEPS):
        x_ahead = _ask(x, x_strides, t + STEPS, left - STEPS, live, -1, STEPS)
        s_ahead = _ask(grad_h, grad_h_strides, t + STEPS, left - STEPS, live, -1, STEPS)
        h_ahead = _ask(h, h_strides, t + STEPS, h_left - STEPS, live, -1, STEPS)
        for u in tl.static_range(STEPS):
            inside = _within(u, left, live)
            s = s_rows[u][0].to(tl.float32) + state
            if product is None:
                before = tl.where(_within(u, h_left, live), h_rows[u][0].to(tl.float32), h0)
                a, grads = _gradients(x_rows[u], s, before, KIND)
                _put(grad, grad_strides, t, u, grads, inside, -1)
            else:
                a = _decay(x_rows[u], KIND)
                growth = tl.where(inside, a * growth, growth)
            state = tl.where(inside, a * s, state)
        x_rows, s_rows, h_rows = x_ahead, s_ahead, h_ahead
        left, h_left = left - STEPS, h_left - STEPS
    _leave(state, growth, end, product, slot, batch * D + d, stop == T, live)


@triton.jit
def _leave(state, growth, end, product, slot, last, is_last, live):
    """Store what a walk ends in: the sum of its chunk, or, of the last chunk alone, the state."""
    if product is None:
        if is_last:
            tl.store(end + last, state, mask=live)
    else:
        tl.store(end + slot, state, mask=live)
        tl.store(product + slot, growth, mask=live)


# ---------------------------------------------------------------- launching


class Plan(NamedTuple):
    """How the work is cut."""

    block: int
    """channels per warp"""
    chunks: int
    """pieces of time"""
    length: int
    """steps per piece, but for the last"""


def plan(B: int, T: int, D: int, multiprocessors: int) -> Plan:
    """The widest blocks of channels that make enough warps; chunks of time if no width does."""
    wanted = WARPS * multiprocessors
    block = next((block for block in BLOCKS if B * triton.cdiv(D, block) >= wanted), BLOCKS[-1])
    warps = B * triton.cdiv(D, block)
    # Chunks read everything but h twice, so they must bring more than they cost.
    chunks = 1 if 2 * warps >= wanted else max(1, min(2 * wanted // warps, T // CHUNK))
    length = triton.cdiv(triton.cdiv(T, chunks), STEPS) * STEPS
    return Plan(block, triton.cdiv(T, length), length)


def steps(inputs: int, block: int, itemsize: int) -> int:
    """How many steps of so many inputs a warp takes in hand at once, a power of two."""
    registers = inputs * max(1, block // 32 * itemsize // 4)
    return min(STEPS, 1 << max(0, (HAND // registers).bit_length() - 1))


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; in the interpreter, an H100's."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def linear_forward(a: Tensor, b: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor]:
    """(h, h_last) of the linear scan; a, b (B, T, D), h0 (B, D)."""
    if b.dtype == torch.float64:
        return portable.linear_forward(a, b, h0)
    return _scan(LINEAR.value, (a, b), h0)


def linear_backward(
    a: Tensor, h: Tensor, h0: Tensor | None, grad_h: Tensor, grad_last: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b (in their type) and h0."""
    if a.dtype == torch.float64:
        return portable.linear_backward(a, h, h0, grad_h, grad_last)
    grads = a.new_empty(a.shape), a.new_empty(a.shape)
    return *grads, _scan_back(LINEAR.value, (a,), (a,), grads, h, h0, grad_h, grad_last)


def cell_forward(projection: Tensor, h0: Tensor | None, parts: int) -> tuple[Tensor, Tensor]:
    """(h, h_last) of minGRU (2 parts) or minLSTM (3 parts); projection (B, T, parts * D), h0 (B, D)."""
    if projection.dtype == torch.float64:
        return portable.cell_forward(projection, h0, parts)
    return _scan(_kind(parts), _dense(projection).chunk(parts, dim=-1), h0)


def cell_backward(
    projection: Tensor, h: Tensor, h0: Tensor | None, grad_h: Tensor, grad_last: Tensor, parts: int
) -> tuple[Tensor, Tensor]:
    """Gradients of the projection (one tensor, its shape and type) and of h0. Recomputes the gates."""
    if projection.dtype == torch.float64:
        return portable.cell_backward(projection, h, h0, grad_h, grad_last, parts)
    x = _dense(projection).chunk(parts, dim=-1)
    grad = projection.new_empty(projection.shape)
    return grad, _scan_back(_kind(parts), x, x[:-1], grad.chunk(parts, dim=-1), h, h0, grad_h, grad_last)


def _kind(parts: int) -> int:
    return {2: MINGRU, 3: MINLSTM}[parts].value


def _scan(kind: int, x: Sequence[Tensor], h0: Tensor | None) -> tuple[Tensor, Tensor]:
    """h, in the type of x, and the last state."""
    h = x[0].new_empty(x[0].shape)
    inputs = _streams(x)
    return h, _walk(_forward, kind, len(x), (*inputs, *_streams([h])), (*inputs, (), ()), h, h0)


def _scan_back(
    kind: int,
    x: Sequence[Tensor],
    gates: Sequence[Tensor],
    grads: Sequence[Tensor],
    h: Tensor,
    h0: Tensor | None,
    grad_h: Tensor,
    grad_last: Tensor,
) -> Tensor:
    """Fill the gradients of all inputs; returns that of h0. The gates are the inputs that a depends on."""
    above, h0 = _streams([grad_h]), None if h0 is None else h0.contiguous()
    everything = (*_streams(x), *above, *_streams([h]), h0, *_streams(grads))
    summary = (*_streams(gates), *above, (), (), None, (), ())
    return _walk(_backward, kind, len(x) + 2, everything, summary, h, grad_last)


def _walk(
    kernel: Any,
    kind: int,
    inputs: int,
    everything: Sequence[Any],
    summary: Sequence[Any],
    like: Tensor,
    first: Tensor | None,
) -> Tensor:
    """Walk over all of time from the state `first` (B, D); returns the state after it, in float32.

    `everything` is what the kernel is given for the walk itself, with so many inputs to read; `summary` is what it is
    given to sum up the chunks before that. `like` has the shape (B, T, D).
    """
    B, T, D = like.shape
    last = like.new_empty((B, D), dtype=torch.float32)
    if last.numel() == 0:
        return last
    cut = plan(B, T, D, multiprocessors(like.device))
    constants = {"KIND": kind, "STEPS": steps(inputs, cut.block, like.itemsize), "BLOCK": cut.block}

    def launch(
        arguments: Sequence[Any], start: Tensor | None, end: Tensor, product: Tensor | None, chunks: int
    ) -> None:
        grid = (B * chunks * triton.cdiv(D, cut.block),)
        with torch.cuda.device_of(like):
            kernel[grid](*arguments, start, end, product, T, D, chunks, cut.length, **constants, **OPTIONS)

    start = first = None if first is None else first.contiguous()
    if cut.chunks > 1:
        end, product = (last.new_empty((B, cut.chunks - 1, D)) for _ in range(2))
        launch(summary, None, end, product, cut.chunks - 1)
        first = torch.zeros_like(last) if first is None else first
        between, _ = _scan(LINEAR.value, (product, end), first)
        start = torch.cat([first[:, None], between], dim=1)
    launch(everything, start, last, None, cut.chunks)
    return last


def _streams(tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[tuple[int, ...], ...]]:
    """Tensors (B, T, D) as the kernels take them: with the strides of batch and time."""
    dense = tuple(_dense(x) for x in tensors)
    return dense, tuple(x.stride()[:2] for x in dense)


def _dense(x: Tensor) -> Tensor:
    """x with its channels side by side. Of an expanded tensor, such as sum's gradient, one row is copied, not all."""
    if x.stride(-1) == 1 or x.shape[-1] == 1:
        return x
    once = [slice(1) if stride == 0 else slice(None) for stride in x.stride()[:2]]
    return x[tuple(once)].contiguous().expand(x.shape)
