"""Fast decoding on a CPU: a minGRU / minLSTM model packed for a native kernel (packed.c), one call per step.

`LanguageModel.step` is the slow twin: the same numbers by some fifty torch operations, each of which costs more than
its arithmetic at batch 1. A row's numbers do not depend on the batch it is in, to the bit.
"""

import copy
import ctypes
import functools
import warnings
from ctypes import POINTER, c_double, c_float, c_int, c_int64, c_void_p
from itertools import islice
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from lm.files import UserError
from lm.mixers.mingru import MinGRU
from lm.mixers.minlstm import MinLSTM
from lm.model import Block, LanguageModel, ModelState
from lm.native.build import BuildError, build

SOURCE = Path(__file__).with_name("packed.c")


WEIGHTS = ("float32", "bfloat16", "int8")


CELLS: dict[type[nn.Module], int] = {MinGRU: 0, MinLSTM: 1}


MLPS = ("relu2", "gelu", "swiglu")


class UnsupportedError(Exception):
    """Why a model cannot be packed."""


class Matrix(ctypes.Structure):
    """`matrix` of packed.c."""

    _fields_ = [*((name, c_void_p) for name in ("weight", "scale", "bias")), ("N", c_int64), ("K", c_int64)]


class Layer(ctypes.Structure):
    """`layer` of packed.c."""

    _fields_ = [
        *((name, c_int64) for name in ("kind", "hidden", "taps", "mlp", "mlp_hidden")),
        *((name, c_void_p) for name in ("norm_mixer", "norm_mlp", "tap", "tap_bias")),
        *((name, Matrix) for name in ("projection", "down", "mlp_up", "mlp_down")),
    ]


class Model(ctypes.Structure):
    """`model` of packed.c."""

    _fields_ = [
        *((name, c_int64) for name in ("type", "vocabulary", "width", "layers", "widest")),
        ("eps", c_float),
        ("embedding", c_void_p),
        ("norm", c_void_p),
        ("head", Matrix),
        ("layer", POINTER(Layer)),
    ]


class Packed:
    """A model to decode with, by the methods of `LanguageModel` and with its states: either can go on from the other's.

    Args:
        model: all mixers mingru or minlstm, on a CPU in float32. Its weights are copied, and it is taken to be in eval
            mode: there is no dropout.
        weights: how the matrices are kept. float32: as they are. bfloat16: rounded. int8: rounded to 255 levels per
            output channel, with a float32 scale each. Embedding, norms, biases and all arithmetic are float32 anyway.

    Raises:
        UnsupportedError: the model is of another kind. BuildError: the kernel cannot be compiled here.
    """

    def __init__(self, model: LanguageModel, weights: str = "float32") -> None:
        require_supported(model)
        self.weights, self.model = weights, rounded(model, weights)
        self.vocabulary = model.embedding.num_embeddings
        self._library = library()
        self._kept: list[Tensor] = []  # what the structures below point to
        self._layers = (Layer * len(model.blocks))(*(self._layer(block) for block in model.blocks))
        self._packed = self._whole(model)
        empty = self.model.init_state(0)
        self._sizes, self._row_shapes = [len(layer) for layer in empty], [part.shape[1:] for part in flat(empty)]
        self._shapes: tuple[int, list[torch.Size]] = -1, []
        self._pointers = c_void_p * len(self._row_shapes)

    # ------------------------------------------------------------ decoding

    def init_state(self, batch: int) -> ModelState:
        """The state before the first character, for so many sequences."""
        return self.model.init_state(batch)

    @torch.inference_mode()
    def forward(self, ids: Tensor, state: ModelState | None = None) -> tuple[Tensor, ModelState]:
        """ids (B, T) -> logits (B, T, V) and the state, as stepping would give, by the plain model in parallel."""
        return self.model(ids, state)

    __call__ = forward

    def step(self, ids: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """ids (B,) int64 -> logits of the next id (B, V), and the new state; the old one is left as it is.

        Raises:
            IndexError: an id is not in the vocabulary. ValueError: ids or state of the wrong shape or type.
        """
        B = len(ids)
        if ids.dtype is not torch.int64 or ids.dim() != 1:
            raise ValueError(f"expected ids (B,) of torch.int64, not {_described(ids)}")
        old = self._parts(B, state)
        logits, new = torch.empty(B, self.vocabulary), [torch.empty(part.shape) for part in old]
        ids = ids.contiguous()
        self._check(
            self._library.step_rows(
                ctypes.addressof(self._packed), B, ids.data_ptr(), logits.data_ptr(),
                self._pointers(*map(_address, old)), self._pointers(*map(_address, new)),
            )
        )  # fmt: skip
        return logits, self._nested(new)

    def write(
        self, logits: Tensor, state: ModelState, uniform: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, ModelState]:
        """Several characters in one call, so that nothing but the model takes time.

        As often as there are rows in uniform: choose ids from the logits as `lm.sampling.choose` does with a
        temperature alone, but for the last bit of exp, never the last of the vocabulary, the unknown; then step.

        Args:
            logits, state: (B, V) and B rows, as `step` returned them; they are left as they are.
            uniform: numbers in [0, 1), float64 (n, B): the randomness of each choice.
            temperature: 0 takes the most probable.

        Returns:
            ids (n, B), and the logits and state after the last of them.
        """
        n, B = uniform.shape
        if logits.shape != (B, self.vocabulary) or logits.dtype is not torch.float32 or not logits.is_cpu:
            raise ValueError(f"expected logits {(B, self.vocabulary)} of torch.float32, not {_described(logits)}")
        if uniform.dtype is not torch.float64:
            raise ValueError(f"expected uniform numbers (n, B) of torch.float64, not {_described(uniform)}")
        logits, new = logits.clone(memory_format=torch.contiguous_format), [p.clone() for p in self._parts(B, state)]
        ids, uniform = torch.empty(n, B, dtype=torch.int64), uniform.contiguous()
        self._check(
            self._library.write_rows(
                ctypes.addressof(self._packed), B, n, uniform.data_ptr(), temperature, ids.data_ptr(),
                logits.data_ptr(), self._pointers(*map(_address, new)), torch.get_num_threads(),
            )
        )  # fmt: skip
        return ids, logits, self._nested(new)

    def _parts(self, B: int, state: ModelState) -> list[Tensor]:
        """The tensors of a state of B rows, each with its rows side by side. Raises ValueError for any other state."""
        parts = flat(state)
        if self._shapes[0] != B:  # remembered for the last batch size
            self._shapes = B, [torch.Size((B, *shape)) for shape in self._row_shapes]
        floats = all([part.dtype is torch.float32 and part.is_cpu for part in parts])
        if not floats or [part.shape for part in parts] != self._shapes[1]:
            raise ValueError(f"expected a float32 state of {self._shapes[1]}, not {', '.join(map(_described, parts))}")
        return [part if part.is_contiguous() else part.contiguous() for part in parts]

    def _nested(self, parts: list[Tensor]) -> ModelState:
        rest = iter(parts)
        return tuple([tuple(islice(rest, size)) for size in self._sizes])

    def _check(self, failed: int) -> None:
        if failed:
            raise IndexError(f"an id is not in 0 .. {self.vocabulary - 1}") if failed == 1 else MemoryError("step")

    # ------------------------------------------------------------ packing

    def _keep(self, x: Tensor) -> int:
        """A copy of x that lives as long as this object: its address."""
        self._kept.append(x.detach().clone(memory_format=torch.contiguous_format))
        return self._kept[-1].data_ptr()

    def _matrix(self, linear: nn.Module) -> Matrix:
        """The packed weights of a linear layer; a null matrix for an identity."""
        if not isinstance(linear, nn.Linear):
            return Matrix()
        block = 2 * self._library.packed_lanes()
        weight, bias, scale = linear.weight.detach(), linear.bias, None
        N, K = weight.shape
        if self.weights == "int8":
            weight, scale = quantise(weight)
        elif self.weights == "bfloat16":
            weight = weight.to(torch.bfloat16).view(torch.int16)
        rows = padded(weight, block).view(-1, block, K).transpose(1, 2)  # (blocks, K, block)
        if self.weights == "bfloat16":
            rows = rows.unflatten(2, (2, -1)).movedim(2, 3)
        elif self.weights == "int8":
            rows = padded(rows.movedim(1, 0), 2).movedim(0, 1).unflatten(1, (-1, 2)).unflatten(3, (2, -1))
            rows = rows.movedim(4, 2)  # (blocks, K / 2, lanes, parity of the input, half of the block)
        bias = weight.new_zeros(N, dtype=torch.float32) if bias is None else bias
        vectors = [None if x is None else self._keep(padded(x.detach(), block)) for x in (scale, bias)]
        return Matrix(self._keep(rows), *vectors, N, K)

    def _layer(self, block: Block) -> Layer:
        mixer, mlp = cast(MinGRU, block.mixer), block.mlp
        assert mlp and block.norm_mlp
        taps, tap, tap_bias = 0, None, None
        if mixer.convolution is not None:
            taps = mixer.convolution.size
            tap, tap_bias = self._keep(mixer.convolution.weight), self._keep(mixer.convolution.bias)
        return Layer(
            CELLS[type(mixer)], mixer.hidden, taps, MLPS.index(mlp.kind), mlp.down.in_features,
            self._keep(block.norm_mixer.weight), self._keep(block.norm_mlp.weight), tap, tap_bias,
            *map(self._matrix, (mixer.projection, mixer.down, mlp.up, mlp.down)),
        )  # fmt: skip

    def _whole(self, model: LanguageModel) -> Model:
        block = 2 * self._library.packed_lanes()
        widest = max(linear.out_features for linear in linears(model))
        return Model(
            WEIGHTS.index(self.weights), self.vocabulary, model.embedding.embedding_dim, len(self._layers),
            -(-widest // block) * block, torch.finfo(torch.float32).eps if model.norm.eps is None else model.norm.eps,
            self._keep(model.embedding.weight), self._keep(model.norm.weight), self._matrix(model.head), self._layers,
        )  # fmt: skip


_address = Tensor.data_ptr  # fewer microseconds by map() than by a comprehension


def _described(x: Tensor) -> str:
    return f"{tuple(x.shape)} of {x.dtype} on {x.device}"


def flat(state: ModelState) -> list[Tensor]:
    """All tensors of a state, in order."""
    return [part for layer in state for part in layer]


def padded(x: Tensor, multiple: int) -> Tensor:
    """x with zeros after its first axis, to a multiple."""
    missing = -x.shape[0] % multiple
    return torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x


def linears(model: nn.Module) -> list[nn.Linear]:
    """All linear layers of a model, its head included."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 levels (N, K) and the scale (N,) of each output, the largest weight being 127 levels."""
    scale = weight.abs().amax(dim=1).clamp_min(1e-30) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


def rounded(model: LanguageModel, weights: str) -> LanguageModel:
    """The model itself, or a copy with its matrices rounded to these weights: what stepping computes with."""
    if weights == "float32":
        return model
    model = copy.deepcopy(model)
    for linear in linears(model):
        exact = linear.weight.data
        if weights == "bfloat16":
            linear.weight.data = exact.bfloat16().float()
        else:
            levels, scale = quantise(exact)
            linear.weight.data = levels * scale[:, None]
    return model


def require_supported(model: nn.Module) -> None:
    """Raises UnsupportedError, which says what is in the way."""
    if type(model) is not LanguageModel:
        raise UnsupportedError(f"{type(model).__name__} is not a LanguageModel")
    for block in model.blocks:
        if type(block.mixer) not in CELLS:
            raise UnsupportedError(f"the mixer {type(block.mixer).__name__} has no native step")
        if block.mlp is None or block.mlp.kind not in MLPS:
            raise UnsupportedError(f"the MLP {block.mlp and block.mlp.kind} has no native step")
    norms = [model.norm, *(norm for block in model.blocks for norm in (block.norm_mixer, block.norm_mlp))]
    if any(type(norm) is not nn.RMSNorm or norm.weight is None or norm.eps != model.norm.eps for norm in norms):
        raise UnsupportedError("a norm is not RMSNorm")
    for parameter in model.parameters():
        if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            raise UnsupportedError(f"its weights are {parameter.dtype} on {parameter.device}, not float32 on a CPU")


def pack(model: LanguageModel, weights: str = "float32") -> "Packed | LanguageModel":
    """The model packed; with float32 weights, the model itself where it cannot be (other mixers, a GPU, no compiler).

    Raises:
        UserError: bfloat16 or int8 were asked for and cannot be had.
    """
    if weights not in WEIGHTS:
        raise UserError(f"weights: expected {' or '.join(WEIGHTS)}, not {weights}")
    try:
        return Packed(model, weights)
    except (UnsupportedError, BuildError) as error:
        if weights != "float32":
            raise UserError(f"{weights} weights cannot be had: {error}") from None
        if isinstance(error, BuildError):
            _warn_once(f"{error}; the slower plain torch path serves")
        return model


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The compiled kernel, or why there is none: tried once."""
    try:
        loaded = build(SOURCE)
    except BuildError as error:
        return f"the native kernel of decoding is not to be had: {error}"
    states = POINTER(c_void_p)
    loaded.step_rows.argtypes = [c_void_p, c_int64, c_void_p, c_void_p, states, states]
    loaded.write_rows.argtypes = [c_void_p, c_int64, c_int64, c_void_p, c_double, c_void_p, c_void_p, states, c_int64]
    loaded.step_rows.restype, loaded.write_rows.restype, loaded.packed_lanes.restype = c_int, c_int, c_int64
    return loaded


def library() -> ctypes.CDLL:
    """The compiled kernel, built if need be (about a second). Raises BuildError, each time, if that failed."""
    loaded = _load()
    if isinstance(loaded, str):
        raise BuildError(loaded)
    return loaded
