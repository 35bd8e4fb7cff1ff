"""Fast decoding on a CPU: a minGRU / minLSTM model packed for a native kernel (packed.c).

`LanguageModel.step` computes the same in some fifty torch operations, each of which costs more than its arithmetic at
batch 1. The results of a row do not depend on the batch that it is in, to the bit.
"""

import copy
import ctypes
from ctypes import POINTER, c_double, c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import cast, get_args

import torch
from torch import Tensor, nn

from lm.config.options import Weights
from lm.files import UserError
from lm.mixers.mingru import MinGRU
from lm.mixers.minlstm import MinLSTM
from lm.model import Block, LanguageModel, ModelState
from lm.native.build import BuildError, Library, warn_once
from lm.ops import RMSNorm

WEIGHTS: tuple[str, ...] = get_args(Weights)
CELLS: dict[type[nn.Module], int] = {MinGRU: 0, MinLSTM: 1}
MLPS = ("relu2", "gelu", "swiglu")


class UnsupportedError(Exception):
    """A model cannot be packed."""


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
    """A packed model, with the methods and the states of `LanguageModel`: each can continue from a state of the other.

    Args:
        model: all mixers mingru or minlstm, on a CPU in float32, without dropout. Its weights are copied.
        weights: how the matrices are kept. float32: as they are. bfloat16: rounded. int8: rounded to 255 levels per
            output channel, with a float32 scale each. Embedding, norms, biases and all arithmetic are float32.

    Raises:
        UnsupportedError: the model is of another kind.
        BuildError: the kernel cannot be compiled here.
    """

    def __init__(self, model: LanguageModel, weights: str = "float32") -> None:
        require_supported(model)
        self.weights, self.model = weights, rounded(model, weights)
        self.vocabulary = model.embedding.num_embeddings
        self._library = library()
        self._block = 2 * self._library.packed_lanes()  # outputs of a block
        self._kept: list[Tensor] = []  # what the structures below point to
        self._layers = (Layer * len(model.blocks))(*(self._layer(block) for block in model.blocks))
        self._packed = self._whole(model)
        self._row_shapes = [part.shape[1:] for part in flat(self.model.init_state(0))]
        self._shapes: tuple[int, list[torch.Size]] = -1, []
        self._pointers = c_void_p * len(self._row_shapes)

    def init_state(self, batch: int) -> ModelState:
        """The state before the first character, for so many sequences."""
        return self.model.init_state(batch)

    @torch.inference_mode()
    def forward(self, ids: Tensor, state: ModelState | None = None) -> tuple[Tensor, ModelState]:
        """ids (B, T) -> logits (B, T, V) and the state, as `step` gives them, by the PyTorch model in parallel."""
        return self.model(ids, state)

    __call__ = forward

    def step(self, ids: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """ids (B,) int64 -> logits of the next id (B, V), and the new state; the old one stays as it is.

        Raises:
            IndexError: an id is not in the vocabulary.
            ValueError: ids or state are of the wrong shape, type or device.
        """
        B = len(ids)
        if ids.dtype is not torch.int64 or ids.dim() != 1 or not ids.is_cpu:
            raise ValueError(f"expected ids (B,) of torch.int64 on cpu, not {_described(ids)}")
        logits, new = torch.empty(B, self.vocabulary, dtype=torch.float32, device="cpu"), self._copy(B, state)
        self._run(None, 0.0, ids.contiguous()[None], logits, new)
        return logits, new

    def write(
        self, logits: Tensor, state: ModelState, uniform: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, ModelState]:
        """Decode n characters of B texts in one native call: choose ids from the logits, read them, and so on.

        `lm.sampling.filters.choose` without filters chooses the same, up to the last bit of exp. The last id of the
        vocabulary, the unknown, is never chosen.

        Args:
            logits, state: (B, V) and B rows, as `step` returned them; they stay as they are.
            uniform: random numbers in [0, 1), float64 (n, B).
            temperature: 0 takes the most probable id.

        Returns:
            ids (n, B), and the logits and state after the last of them.
        """
        n, B = uniform.shape
        if logits.shape != (B, self.vocabulary) or logits.dtype is not torch.float32 or not logits.is_cpu:
            raise ValueError(f"expected logits {(B, self.vocabulary)} of torch.float32, not {_described(logits)}")
        if uniform.dtype is not torch.float64 or not uniform.is_cpu:
            raise ValueError(f"expected uniform numbers (n, B) of torch.float64 on cpu, not {_described(uniform)}")
        logits, new = logits.clone(memory_format=torch.contiguous_format), self._copy(B, state)
        ids = torch.empty(n, B, dtype=torch.int64, device="cpu")
        self._run(uniform.contiguous(), temperature, ids, logits, new)
        return ids, logits, new

    def _run(self, uniform: Tensor | None, temperature: float, ids: Tensor, logits: Tensor, state: ModelState) -> None:
        """The native call, in place: ids (n, B) are chosen by uniform numbers (n, B), or given if these are None."""
        numbers, threads = (None, 1) if uniform is None else (uniform.data_ptr(), torch.get_num_threads())
        failed = self._library.decode(
            ctypes.addressof(self._packed), ids.shape[1], ids.shape[0], numbers, temperature, ids.data_ptr(),
            logits.data_ptr(), self._pointers(*map(_address, flat(state))), threads,
        )  # fmt: skip
        if failed:
            raise IndexError(f"an id is not in 0 .. {self.vocabulary - 1}") if failed == 1 else MemoryError("decode")

    def _copy(self, B: int, state: ModelState) -> ModelState:
        """A contiguous copy of a state of B rows. Raises ValueError for any other state."""
        parts = flat(state)
        if self._shapes[0] != B:  # remembered for the last batch size
            self._shapes = B, [torch.Size((B, *shape)) for shape in self._row_shapes]
        floats = all([part.dtype is torch.float32 and part.is_cpu for part in parts])
        if not floats or [part.shape for part in parts] != self._shapes[1]:
            raise ValueError(f"expected a float32 state of {self._shapes[1]}, not {', '.join(map(_described, parts))}")
        return tuple([tuple([x.clone(memory_format=torch.contiguous_format) for x in layer]) for layer in state])

    def _keep(self, x: Tensor) -> int:
        """The address of a copy of x that lives as long as this object."""
        self._kept.append(x.detach().clone(memory_format=torch.contiguous_format))
        return self._kept[-1].data_ptr()

    def _matrix(self, linear: nn.Module) -> Matrix:
        """The packed weights of a linear layer; a null matrix for an identity."""
        if not isinstance(linear, nn.Linear):
            return Matrix()
        weight, bias, scale, block = linear.weight.detach(), linear.bias, None, self._block
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
        conv, keep = mixer.convolution, self._keep
        taps, *tap = (0, None, None) if conv is None else (conv.size, keep(conv.weight), keep(conv.bias))
        return Layer(
            CELLS[type(mixer)], mixer.hidden, taps, MLPS.index(mlp.kind), mlp.down.in_features,
            keep(block.norm_mixer.weight), keep(block.norm_mlp.weight), *tap,
            *map(self._matrix, (mixer.projection, mixer.down, mlp.up, mlp.down)),
        )  # fmt: skip

    def _whole(self, model: LanguageModel) -> Model:
        widest = max(padded(linear.weight, self._block).shape[0] for linear in linears(model))
        return Model(
            WEIGHTS.index(self.weights), self.vocabulary, model.embedding.embedding_dim, len(self._layers),
            widest, torch.finfo(torch.float32).eps if model.norm.eps is None else model.norm.eps,
            self._keep(model.embedding.weight), self._keep(model.norm.weight), self._matrix(model.head), self._layers,
        )  # fmt: skip


_address = Tensor.data_ptr  # fewer microseconds by map() than by a comprehension


def _described(x: Tensor) -> str:
    return f"{tuple(x.shape)} of {x.dtype} on {x.device}"


def flat(state: ModelState) -> list[Tensor]:
    """All tensors of a state, in order."""
    return [part for layer in state for part in layer]


def padded(x: Tensor, multiple: int) -> Tensor:
    """x with zeros appended along its first axis, up to a multiple of a number."""
    missing = -x.shape[0] % multiple
    return torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x


def linears(model: nn.Module) -> list[nn.Linear]:
    """All linear layers of a model, its head included."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 levels (N, K) and the scale (N,) of each output; its largest weight has level 127 or -127."""
    scale = weight.abs().amax(dim=1).clamp_min(1e-30) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


def rounded(model: LanguageModel, weights: str) -> LanguageModel:
    """The model itself, or a copy with its matrices rounded: `step` of the packed model computes with these."""
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
    """Raises UnsupportedError, which names what cannot be packed."""
    if type(model) is not LanguageModel:
        raise UnsupportedError(f"{type(model).__name__} is not a LanguageModel")
    for block in model.blocks:
        if type(block.mixer) not in CELLS:
            raise UnsupportedError(f"the mixer {type(block.mixer).__name__} has no native step")
        if block.mlp is None or block.mlp.kind not in MLPS:
            raise UnsupportedError(f"the MLP {block.mlp and block.mlp.kind} has no native step")
    norms = [model.norm, *(norm for block in model.blocks for norm in (block.norm_mixer, block.norm_mlp))]
    if any(type(norm) is not RMSNorm or norm.weight is None or norm.eps != model.norm.eps for norm in norms):
        raise UnsupportedError("a norm is not RMSNorm")
    for parameter in model.parameters():
        if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            raise UnsupportedError(f"its weights are {parameter.dtype} on {parameter.device}, not float32 on a CPU")


def pack(model: LanguageModel, weights: str = "float32") -> "Packed | LanguageModel":
    """The packed model; with float32 weights the model itself if it cannot be packed (other mixer, a GPU, no compiler).

    Raises:
        UserError: bfloat16 or int8 weights were asked for and cannot be had.
    """
    if weights not in WEIGHTS:
        raise UserError(f"weights: expected {' or '.join(WEIGHTS)}, not {weights}")
    try:
        return Packed(model, weights)
    except (UnsupportedError, BuildError) as error:
        if weights != "float32":
            raise UserError(f"{weights} weights cannot be had: {error}") from None
        if isinstance(error, BuildError):
            warn_once(str(error))
        return model


library = Library(
    Path(__file__).with_name("packed.c"),
    decode=(c_int, c_void_p, c_int64, c_int64, c_void_p, c_double, c_void_p, c_void_p, POINTER(c_void_p), c_int64),
    packed_lanes=(c_int64,),
)
