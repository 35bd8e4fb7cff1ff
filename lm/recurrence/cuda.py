"""The recurrence on a GPU: Triton kernels with the interface of `lm.recurrence.portable`.

No GPU has run this code yet. Its values are tested in Triton's interpreter, and it was compiled for an H100 (sm_90)
with Triton 3.6 and 3.9. The constants that decide about speed (`REGISTERS` to `BLOCKS`, and `plan`) are estimates.

One warp processes one row of the batch and one block of channels, step by step in time, in float32 registers. Each lane
has its own channels, so that lanes exchange nothing. To hide the memory's latency, the next rows of every input are
loaded before the present ones are used. If rows and channels make too few warps, time is cut into chunks as well:

    1. each chunk but the last is scanned from a zero state; its last state and its product of a are stored;
    2. over the chunks, h_c = product_c h_{c-1} + last_c: the linear scan again, by the same kernel;
    3. each chunk is scanned from the state that it really starts in.

The backward kernel does the same from the last step to the first. Importing this module imports Triton.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lm.recurrence import portable
from lm.recurrence.portable import Kind, empty

LINEAR, MINGRU, MINLSTM = (tl.constexpr(kind.value) for kind in Kind)
REGISTERS = 32  # of a lane for the inputs in use, and as many for those being loaded
STEPS = 16  # most steps of one unrolled loop: the code grows with them
WARPS = 4  # wanted per multiprocessor
CHUNK = 256  # steps for which a chunk is worth its share of the additional launches
BLOCKS = (64, 32)  # channels per warp
OPTIONS = {"num_warps": 1, "enable_fp_fusion": True}  # fusion is explicit because Triton 3.9 will change its default

selective_forward, selective_backward = portable.selective_forward, portable.selective_backward  # no kernels yet


# ---------------------------------------------------------------- one step, in registers


@triton.jit
def _exp_minus_abs(x):
    """exp(-|x|), which cannot overflow. exp2 is one instruction."""
    return tl.exp2(tl.abs(x) * -1.4426950408889634)


@triton.jit
def _sigmoid(x):
    e = _exp_minus_abs(x)
    return tl.where(x >= 0, 1.0, e) / (1 + e)


@triton.jit
def _g(c):
    """The candidate's activation and its derivative. Both branches of `where` are finite everywhere."""
    e = _exp_minus_abs(c)
    share = 1 / (1 + e)
    return tl.where(c >= 0, c + 0.5, e * share), tl.where(c >= 0, 1.0, e * share * share)


@triton.jit
def _gates(x, KIND: tl.constexpr):
    """a = sigmoid(-k) and z = sigmoid(k) from the gate logits. Nothing is subtracted, so that neither loses digits.

    Both are a weight over the sum of the two weights, scaled so that the larger one does not overflow: 1 and e^k in
    minGRU, sigmoid(f) and sigmoid(i) in minLSTM, where sigmoid(f) = e^min(f, 0) / (1 + e^-|f|).
    """
    if KIND == MINGRU:
        odds = -x[0].to(tl.float32)
    else:
        f, i = x[0].to(tl.float32), x[1].to(tl.float32)
        odds = tl.minimum(f, 0.0) - tl.minimum(i, 0.0)
    e = _exp_minus_abs(odds)
    past, new = tl.where(odds >= 0, 1.0, e), tl.where(odds >= 0, e, 1.0)
    if KIND == MINLSTM:
        past, new = past * (1 + _exp_minus_abs(i)), new * (1 + _exp_minus_abs(f))
    share = 1 / (past + new)
    return past * share, new * share


@triton.jit
def _decay(x, KIND: tl.constexpr):
    """a_t from a row of the inputs."""
    if KIND == LINEAR:
        return x[0].to(tl.float32)
    else:
        a, _ = _gates(x, KIND)
        return a


@triton.jit
def _coefficients(x, KIND: tl.constexpr):
    """a_t and b_t from a row of all inputs."""
    if KIND == LINEAR:
        return x[0].to(tl.float32), x[1].to(tl.float32)
    else:
        a, z = _gates(x, KIND)
        candidate, _ = _g(x[KIND].to(tl.float32))
        return a, z * candidate


@triton.jit
def _gradients(x, s, before, KIND: tl.constexpr):
    """a_t, and the gradients of all inputs, from the whole gradient s of h_t and from the state h_{t-1}."""
    if KIND == LINEAR:
        return x[0].to(tl.float32), (s * before, s)
    else:
        a, z = _gates(x, KIND)
        candidate, slope = _g(x[KIND].to(tl.float32))
        grad_k = s * (candidate - before) * z * a
        if KIND == MINGRU:
            return a, (grad_k, s * z * slope)
        else:
            grad_f, grad_i = -grad_k * _sigmoid(-x[0].to(tl.float32)), grad_k * _sigmoid(-x[1].to(tl.float32))
            return a, (grad_f, grad_i, s * z * slope)


# ---------------------------------------------------------------- scans
#
# A stream is a tensor (B, T, D) as the kernels take it: (pointer, stride of the batch, stride of time).


@triton.jit
def _place(D, chunks, length, T, BLOCK: tl.constexpr):
    """What this program computes: its channels, its row of the batch, its chunk, and the chunk's steps."""
    blocks = tl.cdiv(D, BLOCK)
    program = tl.program_id(0).to(tl.int64)  # and so is all that follows: strides times steps may be large
    d = program % blocks * BLOCK + tl.arange(0, BLOCK)
    chunk = program // blocks % chunks
    begin = chunk * length
    return d, program // blocks // chunks, chunk, begin, tl.minimum(begin + length, T)


@triton.jit
def _within(u, left, live):
    """The live channels if u < left, else none. Made a vector first: the interpreter cannot broadcast a comparison."""
    return live & (tl.full(live.shape, u, tl.int32) < left)


@triton.jit
def _seek(streams, batch, t, d):
    """Pointers to the channels d of step t, and the strides of time, of each stream."""
    places = ()
    for i in tl.static_range(len(streams)):
        pointer, batch_stride, time_stride = streams[i]
        places += ((pointer + batch * batch_stride + t * time_stride + d, time_stride),)  # type: ignore[assignment]
    return places


@triton.jit
def _load(places, t, left, live, SIGN: tl.constexpr, STEPS: tl.constexpr):
    """The rows of the steps from t on, each a tuple with a value per stream; SIGN is the direction of time."""
    rows = ()
    for u in tl.static_range(STEPS):
        row = ()
        for i in tl.static_range(len(places)):
            # Left as one product, or the compiler keeps an offset for every u in registers.
            offset = SIGN * (t + u) * places[i][1]
            row += (tl.load(places[i][0] + offset, mask=_within(u, left, live), other=0.0),)  # type: ignore[assignment]
        rows += (row,)  # type: ignore[assignment]
    return rows


@triton.jit
def _store(places, t, u, values, mask, SIGN: tl.constexpr):
    for i in tl.static_range(len(places)):
        tl.store(places[i][0] + SIGN * (t + u) * places[i][1], values[i], mask=mask)


@triton.jit
def _first(start, slot, live):
    """The state in which a scan starts; None is zero."""
    if start is None:
        return tl.zeros(live.shape, tl.float32)
    else:
        return tl.load(start + slot, mask=live, other=0.0)


@triton.jit(do_not_specialize=["T", "chunks", "length"])
def _forward(
    x, h, start, end, product, T, D, chunks, length, KIND: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr
):
    """Scan all chunks: the input streams x to one stream h, and the last state to end (B, D).

    start is (B, chunks, D) or None. With a `product`, h is empty, and end and product are (B, chunks, D).
    """
    d, batch, chunk, begin, stop = _place(D, chunks, length, T, BLOCK)
    live = d < D
    slot = (batch * chunks + chunk) * D + d
    x, h = _seek(x, batch, 0, d), _seek(h, batch, 0, d)
    state = _first(start, slot, live)
    growth = tl.full((BLOCK,), 1.0, tl.float32)
    rows = _load(x, begin, (stop - begin).to(tl.int32), live, 1, STEPS)
    for t in range(begin, stop, STEPS):
        left = (stop - t).to(tl.int32)
        ahead = _load(x, t + STEPS, left - STEPS, live, 1, STEPS)
        for u in tl.static_range(STEPS):
            inside = _within(u, left, live)
            a, b = _coefficients(rows[u], KIND)
            state = tl.where(inside, a * state + b, state)
            growth = tl.where(inside, a * growth, growth)
            _store(h, t, u, (state,), inside, 1)
        rows = ahead
    _finish(state, growth, end, product, slot, batch * D + d, stop == T, live)


@triton.jit(do_not_specialize=["T", "chunks", "length"])
def _backward(
    x,
    h,
    h0,
    grad,
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
    """Scan all chunks back in time; steps, chunks and states are counted from the end.

    x is the input streams (of the linear scan a alone) followed by grad_h, h one stream, h0 (B, D) or None, grad the
    streams of all inputs' gradients; start, end and product as in `_forward`. With a `product`, x is the gates and
    grad_h, and h and grad are empty.
    """
    d, batch, chunk, begin, stop = _place(D, chunks, length, T, BLOCK)
    live = d < D
    slot = (batch * chunks + chunk) * D + d
    x, h, grad = _seek(x, batch, T - 1, d), _seek(h, batch, T - 2, d), _seek(grad, batch, T - 1, d)
    h_left = (tl.minimum(stop, T - 1) - begin).to(tl.int32)  # h_{t-1} belongs to step t; for the first that is h0
    h0 = _first(h0, batch * D + d, live)
    state = _first(start, slot, live)
    growth = tl.full((BLOCK,), 1.0, tl.float32)
    left = (stop - begin).to(tl.int32)
    x_rows, h_rows = _load(x, begin, left, live, -1, STEPS), _load(h, begin, h_left, live, -1, STEPS)
    for t in range(begin, stop, STEPS):
        x_ahead = _load(x, t + STEPS, left - STEPS, live, -1, STEPS)
        h_ahead = _load(h, t + STEPS, h_left - STEPS, live, -1, STEPS)
        for u in tl.static_range(STEPS):
            inside = _within(u, left, live)
            s = x_rows[u][len(x) - 1].to(tl.float32) + state
            if product is None:
                before = tl.where(_within(u, h_left, live), h_rows[u][0].to(tl.float32), h0)
                a, grads = _gradients(x_rows[u], s, before, KIND)
                _store(grad, t, u, grads, inside, -1)
            else:
                a = _decay(x_rows[u], KIND)
                growth = tl.where(inside, a * growth, growth)
            state = tl.where(inside, a * s, state)
        x_rows, h_rows = x_ahead, h_ahead
        left, h_left = left - STEPS, h_left - STEPS
    _finish(state, growth, end, product, slot, batch * D + d, stop == T, live)


@triton.jit
def _finish(state, growth, end, product, slot, last, is_last, live):
    """Store the result of a scan: of every chunk its last state and product, or of the last chunk its state alone."""
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
    """How many steps of so many inputs a warp loads at once, a power of two."""
    registers = inputs * max(1, block // 32 * itemsize // 4)
    return min(STEPS, 1 << max(0, (REGISTERS // registers).bit_length() - 1))


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; in the interpreter, an H100's."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def scan_forward(kind: Kind, x: Sequence[Tensor], h0: Tensor | None) -> tuple[Tensor, Tensor]:
    """(h, h_last) of a scan; see `lm.recurrence.portable.scan_forward`."""
    if x[0].dtype == torch.float64:
        return portable.scan_forward(kind, x, h0)
    x = kind.split(x)
    h = empty(x[0])
    inputs = _streams(*x)
    return h, _scan(_forward, kind, len(x), (inputs, _streams(h)), (inputs, ()), h, h0)


def scan_backward(
    kind: Kind, x: Tensor, grads: Sequence[Tensor], h: Tensor, h0: Tensor | None, grad_h: Tensor, grad_last: Tensor
) -> Tensor:
    """The gradient of h0, and those of the inputs into `grads`; see `lm.recurrence.portable.scan_backward`."""
    if h.dtype == torch.float64:
        return portable.scan_backward(kind, x, grads, h, h0, grad_h, grad_last)
    h0, inputs = None if h0 is None else h0.contiguous(), kind.split([x])
    gates = inputs if kind == Kind.LINEAR else inputs[:-1]
    arguments = _streams(*inputs, grad_h), _streams(h), h0, _streams(*kind.split(grads))
    return _scan(_backward, kind, len(inputs) + 2, arguments, (_streams(*gates, grad_h), (), None, ()), h, grad_last)


def _scan(
    kernel: Any,
    kind: Kind,
    inputs: int,
    arguments: Sequence[Any],
    summary: Sequence[Any],
    like: Tensor,
    first: Tensor | None,
) -> Tensor:
    """Scan from the state `first` (B, D); returns the state after the last step, in float32.

    The kernel gets `arguments` for the scan itself, in which it reads so many input streams, and `summary` for the sums
    of the chunks before that. `like` has the streams' shape (B, T, D) and type.
    """
    B, T, D = like.shape
    last = like.new_empty((B, D), dtype=torch.float32)
    if last.numel() == 0:
        return last
    cut = plan(B, T, D, multiprocessors(like.device))
    constants = {"KIND": kind.value, "STEPS": steps(inputs, cut.block, like.itemsize), "BLOCK": cut.block}

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
        between, _ = scan_forward(Kind.LINEAR, (product, end), first)
        start = torch.cat([first[:, None], between], dim=1)
    launch(arguments, start, last, None, cut.chunks)
    return last


def _streams(*tensors: Tensor) -> tuple[tuple[Tensor, int, int], ...]:
    """Tensors (B, T, D) as the kernels take them: each with its strides of batch and time."""
    return tuple((x, x.stride(0), x.stride(1)) for x in map(portable.rows, tensors))
