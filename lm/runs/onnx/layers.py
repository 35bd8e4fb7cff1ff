"""The layers and mixers of a model as ONNX nodes: each function makes those of a step and those of a sequence.

They are written down, not traced: a mixer has a function here as it has one in packed.c. So its graph is short, has the
names of the model's weights, and computes all that is not recurrent for all positions at once.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor, nn

from lm.files import UserError
from lm.mixers.attention import Attention
from lm.mixers.base import CausalConvolution, Mixer
from lm.mixers.gru import GRU, GRUReference
from lm.mixers.lstm import LSTM, LSTMReference
from lm.mixers.mamba import Mamba
from lm.mixers.mingru import MinGRU
from lm.mixers.minlstm import MinLSTM
from lm.mixers.s4d import S4D
from lm.model import MLP, Block, LanguageModel
from lm.runs.onnx.graph import Graph, Value, Values

EPSILON = torch.finfo(torch.float32).eps
"""Of RMS norms."""


def linear(layer: nn.Module, x: Value) -> Value:
    """A linear layer, with or without bias; or nn.Identity."""
    if not isinstance(layer, nn.Linear):
        return x
    y = x @ layer.weight.T
    return y if layer.bias is None else y + layer.bias


def rms_norm(x: Value, weight: Tensor) -> Value:
    """See `lm.ops.rms_norm`."""
    mean = x.graph.add("ReduceMean", x * x, [-1])
    return x * x.graph.add("Sqrt", mean + EPSILON).reciprocal() * weight


def mlp(layer: MLP, x: Value) -> Value:
    """See `lm.model.MLP`."""
    x = linear(layer.up, x)
    if layer.kind == "relu2":
        x = x.graph.add("Relu", x)
        return linear(layer.down, x * x)
    if layer.kind == "gelu":
        return linear(layer.down, x.graph.add("Gelu", x))
    gate, x = x.split(2)
    return linear(layer.down, gate.silu() * x)


def convolve(layer: CausalConvolution, x: Value, past: Value) -> tuple[Value, Value]:
    """See `lm.ops.causal_convolution`: y, and the new past."""
    graph = x.graph
    padded = graph.add("Concat", past, graph.with_time(x), axis=1)  # (B, K - 1 + T, D)
    channels = padded.transpose(0, 2, 1)
    y = graph.add("Conv", channels, layer.weight.T[:, None], layer.bias, group=layer.weight.shape[1])
    y = graph.without_time(y.transpose(0, 2, 1))
    return y, padded.last(layer.size - 1) if layer.size > 1 else past


# ---------------------------------------------------------------- mixers: x, state -> y, state


def min_cell(mixer: MinGRU, x: Value, state: Values) -> tuple[Value, Values]:
    """minGRU and minLSTM. 1 - z is sigmoid(-k): a difference would lose the digits of a slow gate."""
    h, *past = state
    if mixer.convolution is not None:
        x, past[0] = convolve(mixer.convolution, x, past[0])
    *logits, candidate = linear(mixer.projection, x).split(mixer.gates + 1)
    k = logits[0] if mixer.gates == 1 else (-logits[0]).softplus() - (-logits[1]).softplus()
    graph = x.graph
    positive = graph.add("GreaterOrEqual", candidate, 0.0)
    activated = graph.add("Where", positive, candidate + 0.5, candidate.sigmoid())

    def body(states: Values, inputs: Values) -> tuple[Values, Values]:
        h = inputs[0] * states[0] + inputs[1]
        return [h], [h]

    (h,), (hs,) = graph.fold(body, [h], [(-k).sigmoid(), k.sigmoid() * activated])
    return linear(mixer.down, hs), [h, *past]


def mamba(mixer: Mamba, x: Value, state: Values) -> tuple[Value, Values]:
    """Mamba's selective scan; the states (N, E) of a step are never in memory for all steps at once."""
    h, *past = state
    u, gate = linear(mixer.projection, x).split(2)
    if mixer.convolution is not None:
        u, past[0] = convolve(mixer.convolution, u, past[0])
    u = u.silu()
    delta, B, C = linear(mixer.selection, u).split([mixer.rank, mixer.d_state, mixer.d_state])
    dt = linear(mixer.dt, delta).softplus()
    A = -mixer.A_log.exp()

    def body(states: Values, inputs: Values) -> tuple[Values, Values]:
        dt, x, B, C = inputs
        decay = (dt.unsqueeze(1) * A).exp()
        h = decay * states[0] + B.unsqueeze(2) * x.unsqueeze(1)
        return [h], [(C.unsqueeze(1) @ h).squeeze(1)]

    (h,), (y,) = x.graph.fold(body, [h], [dt, dt * u, B, C], rank=3)
    return linear(mixer.output, (y + u * mixer.skip) * gate.silu()), [h, *past]


def s4d(mixer: S4D, x: Value, state: Values) -> tuple[Value, Values]:
    """S4D in real numbers, since ONNX has no complex ones: h = a h + u, y = 2 Re(C h)."""
    a, C = mixer.discretise()

    def body(states: Values, inputs: Values) -> tuple[Values, Values]:
        real, imaginary = states
        u = inputs[0].unsqueeze(2)
        real, imaginary = real * a.real - imaginary * a.imag + u, imaginary * a.real + real * a.imag
        y = real.graph.add("ReduceSum", real * (2 * C.real) - imaginary * (2 * C.imag), [-1], keepdims=0)
        return [real, imaginary], [y]

    halves, (y,) = x.graph.fold(body, state[0].split(2), [x], rank=3)
    y = x.graph.add("Gelu", y + x * mixer.skip)
    y, gate = linear(mixer.output, y).split(2)
    return y * gate.sigmoid(), [x.graph.add("Concat", *halves, axis=-1)]


def gated(mixer: GRU, x: Value, state: Values) -> tuple[Value, Values]:
    """GRU and LSTM by ONNX's operators, whose gates have another order: z r n, and i o f g."""
    order, operator, options = ([1, 0, 2], "GRU", {"linear_before_reset": 1})
    if mixer.gates == 4:
        order, operator, options = ([0, 3, 1, 2], "LSTM", {})
    if isinstance(mixer, GRUReference):
        weights = [mixer.input.weight, mixer.recurrent.weight, mixer.input.bias, mixer.recurrent.bias]
    else:
        weights = list(mixer.cell.parameters())
    W, R, bias_W, bias_R = (torch.cat([p.chunk(mixer.gates)[i] for i in order])[None] for p in weights)
    graph = x.graph
    time_first = graph.with_time(x).transpose(1, 0, 2)
    first = [part.unsqueeze(0) for part in state]
    y, *last = graph.add_node(
        operator,
        [time_first, W, R, torch.cat([bias_W, bias_R], dim=1), "", *first],
        1 + len(state),
        hidden_size=mixer.hidden,
        **options,
    )
    y = graph.without_time(y.squeeze(1).transpose(1, 0, 2))
    return linear(mixer.down, y), [part.squeeze(0) for part in last]


def attention(mixer: Attention, x: Value, state: Values) -> tuple[Value, Values]:
    """All positions at once attend to themselves and to the cached ones: scores are (B, H, T, window + T)."""
    keys, values, first = state  # (B, window, H, N) each, and (B)
    graph, N = x.graph, mixer.output.in_features // mixer.heads
    x = graph.with_time(x)
    T = graph.add("Squeeze", graph.add("Shape", x, start=1, end=2))
    order = graph.add("Range", 0, T, 1)
    position = first.unsqueeze(1) + order
    if mixer.learned is not None:
        x = x + graph.add("Gather", mixer.learned, graph.add("Mod", position, mixer.window))
    qkv = graph.add("Reshape", linear(mixer.query_key_value, x), [0, 0, 3 * mixer.heads, N])
    q, k, v = qkv.split(3, axis=2)  # (B, T, H, N)
    if mixer.learned is None:
        angles = rotation(position, N)
        q, k = (rotate(rms_norm(x, scale), *angles) for x, scale in ((q, mixer.query_scale), (k, mixer.key_scale)))
    k, v = (graph.add("Concat", past, new, axis=1) for past, new in ((keys, k), (values, v)))
    scores = q.transpose(0, 2, 1, 3) @ k.transpose(0, 2, 3, 1) * N**-0.5
    seen = mask(mixer.window, first, order, graph.add("Range", 0, T + mixer.window, 1))
    scores = graph.add("Where", seen, scores, -math.inf)
    y = (graph.add("Softmax", scores, axis=-1) @ v.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)  # (B, T, H, N)
    y = linear(mixer.output, graph.add("Reshape", y, [0, 0, -1]))
    return graph.without_time(y), [k.last(mixer.window), v.last(mixer.window), first + T]


def rotation(position: Value, N: int) -> list[Value]:
    """Cosine and sine (B, T, 1, N / 2) of the angles at positions (B, T); angles are float64, as in the mixer.

    The cosine is a shifted sine: onnxruntime has had a sine of float64 for longer.
    """
    graph = position.graph
    frequency = 10000.0 ** (-torch.arange(0, N, 2, dtype=torch.float64) / N)
    angle = graph.add("Cast", position, to=TensorProto.DOUBLE).unsqueeze(2, 3) * frequency
    quarter = torch.tensor(math.pi / 2, dtype=torch.float64)
    return [graph.add("Cast", graph.add("Sin", x), to=TensorProto.FLOAT) for x in (angle + quarter, angle)]


def rotate(x: Value, cos: Value, sin: Value) -> Value:
    """Rotate each pair of channels (j, j + N / 2) of x (B, T, H, N)."""
    first, second = x.split(2)
    return x.graph.add("Concat", first * cos - second * sin, first * sin + second * cos, axis=-1)


def mask(window: int, first: Value, query: Value, key: Value) -> Value:
    """Which of the keys 0 ... window + T - 1, the cached ones first, each of the queries 0 ... T - 1 attends to."""
    graph = key.graph
    age = query.unsqueeze(1) + window - key  # (T, window + T)
    near = graph.add("And", graph.add("GreaterOrEqual", age, 0), graph.add("Less", age, window))
    real = graph.add("GreaterOrEqual", key + first.unsqueeze(1), window)  # (B, window + T)
    return graph.add("And", near, real.unsqueeze(1, 2))  # (B, 1, T, window + T)


MIXERS: dict[type[Mixer], Callable[[Any, Value, Values], tuple[Value, Values]]] = {
    MinGRU: min_cell,
    MinLSTM: min_cell,
    Mamba: mamba,
    S4D: s4d,
    GRU: gated,
    LSTM: gated,
    GRUReference: gated,
    LSTMReference: gated,
    Attention: attention,
}

# ---------------------------------------------------------------- blocks


def add_block(block: Block, x: Value, state: Values) -> tuple[Value, Values]:
    """See `lm.model.Block`. Raises UserError if its mixer cannot be expressed."""
    kind = type(block.mixer)
    if kind not in MIXERS:
        raise UserError(f"--format onnx: the mixer {kind.__name__} has no function in lm/runs/onnx/layers.py")
    y, state = MIXERS[kind](block.mixer, rms_norm(x, block.norm_mixer.weight), state)
    x = x + y
    if block.mlp is not None and block.norm_mlp is not None:
        x = x + mlp(block.mlp, rms_norm(x, block.norm_mlp.weight))
    return x, state


def add_model(graph: Graph, model: LanguageModel) -> None:
    """See `lm.model.LanguageModel`: from `ids` and `state.LAYER.PART` to `logits` and `next.LAYER.PART`.

    Raises:
        UserError: a mixer cannot be expressed.
    """
    x = graph.add("Gather", model.embedding.weight, "ids")
    for i, (block, state) in enumerate(zip(model.blocks, model.init_state(1), strict=True)):
        parts = [f"{i}.{j}" for j in range(len(state))]
        x, new = add_block(block, x, [Value(graph, f"state.{part}") for part in parts])
        for part, value in zip(parts, new, strict=True):
            graph.output(value, f"next.{part}")
    graph.output(linear(model.head, rms_norm(x, model.norm.weight)), "logits")
