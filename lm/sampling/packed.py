"""Fast decoding on a CPU: a minGRU / minLSTM model packed for a native kernel (packed.c).

`LanguageModel.step` computes the same in some fifty torch operations, each of which costs more than its arithmetic at
batch 1. The results of a row do not depend on the batch that it is in, to the bit.
"""

import copy
from ctypes import POINTER, c_double, c_int, c_int64, c_void_p
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lm.files import UserError
from lm.model import LanguageModel, ModelState
from lm.native.build import BuildError, Library, warn_once
from lm.ops import RMSNorm
from lm.sampling.layout import CELLS, MLPS, NATIVE, WEIGHTS, Layout, quantise

ROWS = 32
"""Characters of a text that go through the model together when it is traced."""


class UnsupportedError(Exception):
    """A model cannot be packed."""


class Trace(NamedTuple):
    """What a model computes while it reads one text of T characters."""

    logits: Tensor
    """of the next id after each character (T, V)"""
    gates: list[Tensor]
    """z of each layer (T, hidden): the share of the candidate in the next state"""
    states: list[Tensor]
    """h of each layer after each character (T, hidden)"""
    state: ModelState
    """after the last character"""


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
        self._kept: list[Tensor] = []  # what the kernel reads
        self._layout = Layout(model, weights, self._library.packed_lanes(), NATIVE, self._keep)
        self._row_shapes = [part.shape[1:] for part in flat(self.model.init_state(0))]
        self._shapes: tuple[int, list[torch.Size]] = -1, []
        self._pointers = c_void_p * len(self._row_shapes)

    def _keep(self, x: Tensor) -> int:
        """The address of a copy of x that lives as long as this object."""
        self._kept.append(x.clone(memory_format=torch.contiguous_format))
        return self._kept[-1].data_ptr()

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
        B = _count(ids)
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

    def trace(self, ids: Tensor, state: ModelState | None = None) -> Trace:
        """Read ids (T,) int64 of one text, from the start or after another one, with the gates and states on the way.

        Raises:
            IndexError: an id is not in the vocabulary.
            ValueError: the ids are of another type, or the state is not one of a single text.
        """
        T, new = _count(ids), self._copy(1, self.init_state(1) if state is None else state)
        logits = torch.empty(T, self.vocabulary)
        gates, states = ([torch.empty(T, hidden) for hidden in self._layout.hidden] for _ in range(2))
        work = torch.empty(ROWS, self._layout.work)
        layers = c_void_p * len(gates)
        for parts in zip(*(x.split(ROWS) for x in (ids.contiguous(), logits, *gates, *states)), strict=True):
            chunk, out, *kept = map(_address, parts)
            z, h = layers(*kept[: len(gates)]), layers(*kept[len(gates) :])
            pointers = self._pointers(*map(_address, flat(new)))
            n = len(parts[0])
            if self._library.trace(self._layout.address, n, chunk, out, pointers, h, z, work.data_ptr()):
                raise IndexError(f"an id is not in 0 .. {self.vocabulary - 1}")
        return Trace(logits, gates, states, new)

    def _run(self, uniform: Tensor | None, temperature: float, ids: Tensor, logits: Tensor, state: ModelState) -> None:
        """The native call, in place: ids (n, B) are chosen by uniform numbers (n, B), or given if these are None."""
        numbers, threads = (None, 1) if uniform is None else (uniform.data_ptr(), torch.get_num_threads())
        failed = self._library.decode(
            self._layout.address, ids.shape[1], ids.shape[0], numbers, temperature, ids.data_ptr(),
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


_address = Tensor.data_ptr  # fewer microseconds by map() than by a comprehension


def _count(ids: Tensor) -> int:
    """How many ids there are. Raises ValueError unless they are int64 (n,) on the CPU."""
    if ids.dtype is not torch.int64 or ids.dim() != 1 or not ids.is_cpu:
        raise ValueError(f"expected ids (n,) of torch.int64 on cpu, not {_described(ids)}")
    return len(ids)


def _described(x: Tensor) -> str:
    return f"{tuple(x.shape)} of {x.dtype} on {x.device}"


def flat(state: ModelState) -> list[Tensor]:
    """All tensors of a state, in order."""
    return [part for layer in state for part in layer]


def linears(model: nn.Module) -> list[nn.Linear]:
    """All linear layers of a model, its head included."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


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
    trace=(
        c_int,
        c_void_p,
        c_int,
        c_void_p,
        c_void_p,
        POINTER(c_void_p),
        POINTER(c_void_p),
        POINTER(c_void_p),
        c_void_p,
    ),
    packed_lanes=(c_int64,),
)
