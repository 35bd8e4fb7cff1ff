"""Implementations of one cell: h (B, T, D) of a projection (B, T, parts * D), for minGRU (2 parts) and minLSTM (3).

Packages of others are imported when a contender is made; a missing one raises RefusedError, which says how to install
it.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, logsigmoid, scaled_dot_product_attention

from lm import recurrence
from lm.bench.measure import RefusedError, precision
from lm.recurrence.reference import g

CELLS = {"mingru": 2, "minlstm": 3}
"""Parts of the projection; ours is [gate logits ... | candidate]."""
SCANS: dict[str, Callable[..., Tensor]] = {
    "mingru": lambda *inputs: recurrence.mingru_scan(*inputs)[0],
    "minlstm": lambda *inputs: recurrence.minlstm_scan(*inputs)[0],
}
"""Ours: h of a projection and perhaps an initial state (B, D)."""
YARDSTICK = "minGRU-pytorch"
LOOP = "Python loop"

Cell = Callable[[Tensor], Tensor]
Scan = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """An implementation of a cell.

    Attributes:
        make: returns the function, or raises RefusedError.
        backend: the value of LM_BACKEND to run it under; None for code of others.
        candidate_first: whether it reads the projection as [candidate | gate logits ...].
    """

    make: Callable[[], Cell]
    backend: str | None = None
    candidate_first: bool = False


def contenders(kind: str, device: torch.device) -> dict[str, Contender]:
    """All implementations of this cell for this device, by name; ours first."""
    found = {f"ours, {label}": Contender(lambda: SCANS[kind], name) for label, name in backends(device).items()}
    found[YARDSTICK] = Contender(lambda: mingru_pytorch(kind), candidate_first=True)
    if kind == "mingru":
        scans = {"mambapy pscan": mambapy, "torch associative_scan": lambda: associative_scan, LOOP: lambda: loop}
        scans |= {"accelerated-scan": accelerated_scan} if device.type == "cuda" else {}
        found |= {name: Contender(partial(mingru_by, make)) for name, make in scans.items()}
        found |= {"fla hgrn": Contender(hgrn)} if device.type == "cuda" else {}
    return found


def backends(device: torch.device) -> dict[str, str]:
    """Our backends for a device: the name in tables, and the value of LM_BACKEND. The one of `auto` comes first."""
    if device.type == "cpu":
        return {"native": "native", "portable": "portable"}
    with backend("auto"):
        fast = recurrence.kernels(torch.zeros(1, device=device)).__name__.rpartition(".")[2]
    return {"triton" if fast == "cuda" else fast: "auto", "portable": "portable"}


@contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Run forward and backward by this backend of ours; None leaves the choice as it is."""
    before = os.environ.get("LM_BACKEND", "auto")
    os.environ["LM_BACKEND"] = name or before
    try:
        yield
    finally:
        os.environ["LM_BACKEND"] = before


def gradients(call: Callable[..., Tensor], name: str | None, grad_h: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """h of some inputs under a backend of ours, in the type of `grad_h` (B, T, D), and the gradients of the inputs."""
    with backend(name):
        with precision(inputs[0].device, inputs[0].dtype):
            h = call(*inputs).to(grad_h.dtype)
        return h, *torch.autograd.grad(h, inputs, grad_h)


def truth(kind: str, grad_h: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The same by our plain torch path in float64, of a projection and perhaps an initial state."""
    wide = (x.detach().double().requires_grad_() for x in inputs)
    return gradients(SCANS[kind], "portable", grad_h.double(), *wide)


def late(module: str, package: str = '"char-lm[bench]"') -> Any:
    """Import a package of others. Raises RefusedError, which says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise RefusedError(f"not installed: pip install {package}") from None


def mingru_pytorch(kind: str) -> Cell:
    """The cell of lucidrains' package without its projection; it has no other weights at expansion 1."""
    name, projection = {"mingru": ("minGRU", "hidden_and_gate"), "minlstm": ("minLSTM", "hidden_and_f_i_gate")}[kind]
    module = getattr(late(f"minGRU_pytorch.{name}"), name)(1)
    setattr(module, f"to_{projection}", nn.Identity())
    return module


def mingru_by(make: Callable[[], Scan]) -> Cell:
    """A minGRU cell by a scan of h_t = a_t h_{t-1} + b_t, its gates in plain torch."""
    scan = make()
    return lambda projection: scan(*coefficients(projection))


def coefficients(projection: Tensor) -> tuple[Tensor, Tensor]:
    """a and b (B, T, D) of minGRU as h_t = a_t h_{t-1} + b_t."""
    k, c = projection.chunk(2, dim=-1)
    return torch.sigmoid(-k), torch.sigmoid(k) * g(c)


def mambapy() -> Scan:
    """The Blelloch scan of mambapy, whose states have N = 1 numbers here."""
    pscan = late("mambapy.pscan").pscan
    return lambda a, b: pscan(a[..., None], b[..., None])[..., 0]


def associative_scan(a: Tensor, b: Tensor) -> Tensor:
    """The scan of torch, which takes any associative function."""
    from torch._higher_order_ops import associative_scan

    def combine(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return x[0] * y[0], y[0] * x[1] + y[1]

    return associative_scan(combine, (a, b), dim=1, combine_mode="generic")[1]


def loop(a: Tensor, b: Tensor) -> Tensor:
    """One step after the other. Unbound first: indexing would make backward write a whole (B, T, D) for each step."""
    h, steps = torch.zeros_like(b[:, 0]), []
    for a_t, b_t in zip(a.unbind(1), b.unbind(1), strict=True):
        h = torch.addcmul(b_t, a_t, h)
        steps.append(h)
    return torch.stack(steps, dim=1)


def accelerated_scan() -> Scan:
    """proger/accelerated-scan: its CUDA kernel where nvcc can build it, else its Triton kernel. It wants (B, D, T)."""
    try:
        scan = late("accelerated_scan.warp", "accelerated-scan").scan
    except (OSError, RuntimeError):  # the build at import failed
        scan = late("accelerated_scan.triton", "accelerated-scan").scan

    def transposed(a: Tensor, b: Tensor) -> Tensor:
        return scan(a.transpose(1, 2).contiguous(), b.transpose(1, 2).contiguous()).transpose(1, 2)

    return transposed


def hgrn() -> Cell:
    """flash-linear-attention's HGRN, which takes the logarithm of a."""
    chunk_hgrn = late("fla.ops.hgrn", "flash-linear-attention").chunk_hgrn

    def cell(projection: Tensor) -> Tensor:
        k, c = projection.chunk(2, dim=-1)
        return chunk_hgrn(torch.sigmoid(k) * g(c), logsigmoid(-k))[0]

    return cell


class GPTBlock(nn.Module):
    """A block of nanoGPT: norm, causal attention, norm, GELU network of four times the width; no biases."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.query_key_value(self.norm_attention(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)  # (B, H, T, N)
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(y.transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.norm_mlp(x))))


class GPT(nn.Module):
    """The Transformer of nanoGPT, which writes by reading its last `context` characters anew for each one.

    Its logits (B, 1, V) are those after the last of the ids (B, T), T <= context; positions are learned.
    """

    def __init__(self, vocabulary: int, layers: int, heads: int, width: int, context: int) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(GPTBlock(heads, width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.blocks(x))[:, -1:])
