"""How packed.c finds a model in memory: structures that point to packed weights and to each other."""

import ctypes
from collections.abc import Callable
from ctypes import c_float, c_int64, c_uint32, c_void_p
from typing import cast, get_args

import torch
from torch import Tensor, nn

from lm.config.options import Weights
from lm.mixers.mingru import MinGRU
from lm.mixers.minlstm import MinLSTM
from lm.model import Block, LanguageModel

WEIGHTS: tuple[str, ...] = get_args(Weights)
CELLS: dict[type[nn.Module], int] = {MinGRU: 0, MinLSTM: 1}
MLPS = ("relu2", "gelu", "swiglu")
Structures = tuple[type[ctypes.Structure], type[ctypes.Structure], type[ctypes.Structure]]


def _structures(pointer: type) -> Structures:
    """`matrix`, `layer` and `model` of packed.c, where a pointer is of this type."""

    class Matrix(ctypes.Structure):
        _fields_ = [*((name, pointer) for name in ("weight", "scale", "bias")), ("N", c_int64), ("K", c_int64)]

    class Layer(ctypes.Structure):
        _fields_ = [
            *((name, c_int64) for name in ("kind", "hidden", "taps", "mlp", "mlp_hidden")),
            *((name, pointer) for name in ("norm_mixer", "norm_mlp", "tap", "tap_bias")),
            *((name, Matrix) for name in ("projection", "down", "mlp_up", "mlp_down")),
        ]

    class Model(ctypes.Structure):
        _fields_ = [
            *((name, c_int64) for name in ("type", "vocabulary", "width", "layers", "widest")),
            ("eps", c_float),
            *((name, pointer) for name in ("embedding", "norm")),
            ("head", Matrix),
            ("layer", pointer),
        ]

    return Matrix, Layer, Model


NATIVE, WASM32 = _structures(c_void_p), _structures(c_uint32)
Keep = Callable[[Tensor], int]
"""Copies the bytes of a contiguous tensor to where the kernel will find them, and returns their address."""


class Layout:
    """A model in memory.

    Args:
        model: one that `lm.sampling.packed.require_supported` accepts.
        weights: see `lm.sampling.packed.Packed`.
        lanes: floats in a vector of the processor: LANES of kernel.h.
        structures: NATIVE or WASM32.
        keep: where everything goes to.
    """

    def __init__(self, model: LanguageModel, weights: str, lanes: int, structures: Structures, keep: Keep) -> None:
        self.weights, self.block = weights, 2 * lanes  # outputs of a block
        self._matrix_type, self._layer_type, model_type = structures
        self._keep = keep
        outputs = [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
        self.widest = max(-(-n // self.block) * self.block for n in outputs)
        vocabulary, width = model.embedding.weight.shape
        self.work = 2 * (-(-width // self.block) * self.block) + self.widest
        """floats that the kernel works with for each row"""
        self.hidden = [cast(MinGRU, block.mixer).hidden for block in model.blocks]
        """channels of each layer's state"""
        layers = (self._layer_type * len(model.blocks))(*(self._layer(cast(Block, block)) for block in model.blocks))
        eps = torch.finfo(torch.float32).eps if model.norm.eps is None else model.norm.eps
        structure = model_type(
            WEIGHTS.index(weights), vocabulary, width, len(layers), self.widest, eps,
            self._vector(model.embedding.weight), self._vector(model.norm.weight), self._matrix(model.head),
            keep(as_bytes(layers)),
        )  # fmt: skip
        self.address = keep(as_bytes(structure))
        """of the structure `model`"""

    def _layer(self, block: Block) -> ctypes.Structure:
        mixer, mlp, vector = cast(MinGRU, block.mixer), block.mlp, self._vector
        assert mlp and block.norm_mlp
        conv = mixer.convolution
        taps, *tap = (0, None, None) if conv is None else (conv.size, vector(conv.weight), vector(conv.bias))
        return self._layer_type(
            CELLS[type(mixer)], mixer.hidden, taps, MLPS.index(mlp.kind), mlp.down.in_features,
            vector(block.norm_mixer.weight), vector(block.norm_mlp.weight), *(address or 0 for address in tap),
            *map(self._matrix, (mixer.projection, mixer.down, mlp.up, mlp.down)),
        )  # fmt: skip

    def _vector(self, x: Tensor) -> int:
        return self._keep(x.detach().contiguous())

    def _matrix(self, linear: nn.Module) -> ctypes.Structure:
        """The packed weights of a linear layer; a null matrix for an identity."""
        if not isinstance(linear, nn.Linear):
            return self._matrix_type()
        weight, bias, scale, block = linear.weight.detach(), linear.bias, None, self.block
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
        vectors = [0 if x is None else self._vector(padded(x.detach(), block)) for x in (scale, bias)]
        return self._matrix_type(self._vector(rows), *vectors, N, K)


def as_bytes(structure: ctypes.Structure | ctypes.Array) -> Tensor:
    """A copy of a structure's bytes, uint8."""
    return torch.frombuffer(bytearray(structure), dtype=torch.uint8)


def padded(x: Tensor, multiple: int) -> Tensor:
    """x with zeros appended along its first axis, up to a multiple of a number."""
    missing = -x.shape[0] % multiple
    return torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 levels (N, K) and the scale (N,) of each output; its largest weight has level 127 or -127."""
    scale = weight.abs().amax(dim=1).clamp_min(1e-30) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale
