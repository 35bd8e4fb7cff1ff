"""Whole models, forward + backward at the paper's size, per mixer, against minGRU-pytorch's minLM.

`mingru, gelu` computes the same function as minLM: the two are compared on equal weights before anything is timed.
`mingru` has the default MLP instead, squared ReLU. GFLOP/s counts 6 x parameters x characters, whatever a mixer does
beside its matrices. `of sgemm` and `of peak` are shares of torch's product of large matrices and of the processor's
multiply-adds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lm.bench import measure, models, options, peers
from lm.bench.measure import Row
from lm.bench.peak import Limits
from lm.config.options import OptimConfig
from lm.mixers import MIXERS
from lm.model import LanguageModel
from lm.report.format import number
from lm.training.loss import nll
from lm.training.optim import make_optimizer

HEADER = ("", "parameters", "forward + backward ms", "chars/s", "GFLOP/s", "of sgemm", "of peak", "x minLM")
YARDSTICK = "minGRU-pytorch minLM"
VOCABULARY = 65
EXPANSION = 2.0


@dataclass(frozen=True)
class Step:
    """One training step without its optimiser: a model's logits, the loss, all gradients."""

    model: nn.Module
    logits: Callable[[Tensor], Tensor]
    ids: Tensor
    dtype: torch.dtype

    def __call__(self) -> None:
        self.model.zero_grad(set_to_none=True)
        with measure.precision(self.ids.device, self.dtype):
            loss = nll(self.logits(self.ids[:, :-1]), self.ids[:, 1:])
        loss.backward()


def make_minlm(width: int, layers: int) -> nn.Module:
    """lucidrains' model with the paper's block but for the convolution. Raises RefusedError if it is not installed."""
    module = peers.late("minGRU_pytorch.minLM")
    return module.minLM(num_tokens=VOCABULARY, dim=width, depth=layers, expansion=EXPANSION)


def make_ours(name: str, T: int, width: int, layers: int) -> LanguageModel:
    """Our model with this mixer, or with minLM's MLP if the name ends so. Attention takes twice the layers."""
    mixer, _, mlp = name.partition(", ")
    layers *= 2 if mixer == "attention" else 1
    given = {"expansion": EXPANSION, "convolution": 0, "window": T}
    return models.make(mixer, width, layers, VOCABULARY, mlp or "relu2", **given)


@torch.no_grad()
def copy_weights(ours: LanguageModel, theirs: Any) -> None:
    """Give our mingru model minLM's weights, and both of them no biases, where they differ."""
    ours.embedding.weight.copy_(theirs.token_emb.weight)
    for block, (_, norm, cell, mlp_norm, mlp, _) in zip(ours.blocks, theirs.layers, strict=True):
        mixer: Any = block.mixer
        mixer.projection.weight.copy_(torch.cat(cell.to_hidden_and_gate.weight.chunk(2)[::-1]))
        mixer.down.weight.copy_(cell.to_out.weight)
        block.norm_mixer.weight.copy_(norm.weight)
        assert block.mlp and block.norm_mlp
        block.norm_mlp.weight.copy_(mlp_norm.weight)
        block.mlp.up.weight.copy_(mlp[0].weight)
        block.mlp.down.weight.copy_(mlp[2].weight)
        for bias in (mixer.projection.bias, mixer.down.bias, mlp[0].bias, mlp[2].bias):
            bias.zero_()
    ours.norm.weight.copy_(theirs.norm.weight)
    ours.head.weight.copy_(theirs.to_logits.weight)


def require_minlm(ours: LanguageModel, theirs: nn.Module, ids: Tensor) -> None:
    """Equal weights must give equal logits and gradients of the embedding. Raises RefusedError."""
    copy_weights(ours, theirs)
    logits, expected = ours(ids)[0], theirs(ids)
    measure.require_equal("logits", logits, expected, 1e-4)
    direction = torch.randn_like(logits)
    grads = [
        torch.autograd.grad(y, weight, direction)[0]
        for y, weight in ((logits, ours.embedding.weight), (expected, theirs.get_parameter("token_emb.weight")))
    ]
    measure.require_equal("gradients", grads[0], grads[1], 1e-3)


def contenders(arguments: options.Train) -> list[str]:
    """minLM, its twin among ours, and the mixers asked for."""
    return [
        *(YARDSTICK, "mingru, gelu"),
        *(arguments.mixers or (name for name in MIXERS if not name.endswith("_reference"))),
    ]


def prepare(name: str, ids: Tensor, arguments: options.Train) -> tuple[Step, Row]:
    """A contender, checked on 24 characters and ready to be timed. Raises RefusedError."""
    torch.manual_seed(0)
    _, dtype = measure.device_and_type(arguments)
    T, size = ids.shape[1] - 1, (arguments.width, arguments.layers)
    if name == YARDSTICK:
        minlm = make_minlm(*size).to(ids.device)
        require_minlm(make_ours("mingru, gelu", T, *size).to(ids.device), minlm, ids[:1, :24])
        step = Step(minlm, minlm, ids, dtype)
    else:
        ours = make_ours(name, T, *size).to(ids.device)
        measure.require_forward_equals_steps(ours, ids[:2, :24])
        step = Step(ours, lambda x: ours(x)[0], ids, dtype)
    return step, {"parameters": sum(p.numel() for p in step.model.parameters())}


def optimizer_step(step: Step, name: Literal["muon", "adamw"]) -> measure.Call:
    """The optimiser's step alone, on the gradients of the last backward pass."""
    step()
    return make_optimizer(step.model, OptimConfig(name=name)).step


def compare(size: tuple[int, ...], arguments: options.Train) -> tuple[dict[str, list[float]], Limits, list[Row]]:
    """All times by name, the limits, and one row per contender."""
    device, dtype = measure.device_and_type(arguments)
    torch.manual_seed(0)
    ids = torch.randint(VOCABULARY, (size[0], size[1] + 1), device=device)
    limits = Limits(arguments.gemm, dtype, device)
    calls = dict(limits.calls)
    steps, rows = measure.prepare(
        {name: partial(prepare, name, ids, arguments) for name in contenders(arguments)}, size=size
    )
    for name, step in steps.items():
        calls[name] = step
        if arguments.optimizer and name != YARDSTICK:
            calls[f"{name} optimiser"] = optimizer_step(step, arguments.optimizer)
    times = measure.in_turns(calls, arguments.repeat, device)
    known = times.get(YARDSTICK)
    for row in rows:
        if "skipped" not in row:
            row |= {"both": times[row["name"]], "optimiser": times.get(f"{row['name']} optimiser")}
            seconds = measure.median(row["both"])
            rate = size[0] * size[1] / seconds
            flops = 6 * row["parameters"] * rate
            row |= {"characters_per_second": rate, "flops_per_second": flops, **limits.shares(flops, times)}
            row["speedup"] = measure.median(known) / seconds if known else None
    return times, limits, rows


def run(arguments: options.Train) -> Row:
    """All models at all sizes."""
    about = measure.heading("Whole models: forward + backward", arguments)
    header = (*HEADER, "optimiser ms") if arguments.optimizer else HEADER
    results = []
    for B, T in measure.sizes(arguments.sizes, "BT"):
        times, limits, rows = compare((B, T), arguments)
        print(f"\nB={B} T={T:,}; {limits.describe(times)}")
        measure.print_table(header, rows, lambda row: table_row(row)[: len(header) - 1])
        results.append({"size": (B, T), "sgemm": times["sgemm"], **limits.columns(times), "rows": rows})
    return {"conditions": about, "results": results}


def table_row(row: Row) -> tuple[str, ...]:
    """The cells of a contender's row."""
    return (
        f"{row['parameters']:,}",
        measure.spread(row["both"]),
        f"{row['characters_per_second']:,.0f}",
        f"{row['flops_per_second'] / 1e9:,.1f}",
        number(row["of_sgemm"], ".0%"),
        number(row["of_peak"], ".0%"),
        number(row["speedup"]),
        measure.spread(row["optimiser"]) if row["optimiser"] else "-",
    )
