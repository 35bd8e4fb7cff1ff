"""The optimiser, gradient clipping, and the learning-rate schedule.

Muon: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). `torch.optim.Muon` exists, but
orthogonalises in bfloat16 only, which CPUs emulate at a tenth of float32's speed, and has no AdamW for the others.
"""

import inspect
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from lm.config.options import DEFAULT_LR, OptimConfig

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration, chosen by Jordan for speed: singular values end in about [0.7, 1.2]."""


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Replace the singular values of a matrix (M, N) by values near 1, with a Newton-Schulz iteration.

    Computes in bfloat16 on a GPU and in float32 on a CPU, the faster type of each. Returns that type.
    """
    x = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / (x.norm() + 1e-7)
    x = newton_schulz(x, steps) if x.dtype == torch.bfloat16 else newton_schulz_gram(x, steps)
    return x.mT if tall else x


def newton_schulz(x: Tensor, steps: int) -> Tensor:
    """Iterate x <- a x + b (x x^T) x + c (x x^T)^2 x; x (M, N) with M <= N, of norm at most 1."""
    a, b, c = NEWTON_SCHULZ
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def newton_schulz_gram(x: Tensor, steps: int) -> Tensor:
    """The same iteration on x x^T alone, whose result is multiplied by x at the end: half the work if N >= 3 M.

    Each step maps x to p x with p = a + b g + c g^2 and g = x x^T, hence g to p g p. Needs float32: the errors of g
    grow twelvefold in each step, which is too much for bfloat16.
    """
    a, b, c = NEWTON_SCHULZ
    gram = x @ x.mT
    product = None
    for step in range(steps):
        p = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal().add_(a)
        product = p if product is None else p @ product
        if step < steps - 1:
            gram = p @ gram @ p
    return x if product is None else product @ x


class MuonAdamW(Optimizer):
    """Muon and AdamW as one optimiser; each parameter group has its algorithm.

    Args:
        groups: have `algorithm` ("muon" or "adamw"), `lr`, `weight_decay`; AdamW also `betas`, Muon `momentum`.
            Weight decay is decoupled: p <- p (1 - lr * weight_decay).
    """

    # Without torch's wrappers, which import the compiler, in a second, to keep it out of these.
    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"weight_decay": 0.0, "betas": (0.9, 0.99), "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient. A closure is evaluated first, and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                update = self._muon if group["algorithm"] == "muon" else self._adamw
                update(group, parameters, [p.grad for p in parameters])
        return loss

    def _muon(self, group: dict[str, Any], parameters: list[Tensor], grads: list[Tensor]) -> None:
        momenta = [self._buffer(p, "momentum") for p in parameters]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, momenta, group["momentum"])  # Nesterov
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for p, update in zip(parameters, updates, strict=True):
            # Equal root-mean-square per row for tall matrices, as in Jordan's implementation.
            scale = max(1.0, p.shape[-2] / p.shape[-1]) ** 0.5
            p.add_(orthogonalise(update).to(p.dtype), alpha=-group["lr"] * scale)

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor], grads: list[Tensor]) -> None:
        adamw(
            parameters,
            grads,
            [self._buffer(p, "exp_avg") for p in parameters],
            [self._buffer(p, "exp_avg_sq") for p in parameters],
            [],
            [self._buffer(p, "step", torch.zeros((), dtype=torch.float32, device=p.device)) for p in parameters],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )

    def _buffer(self, p: Tensor, name: str, start: Tensor | None = None) -> Tensor:
        state = self.state[p]
        if name not in state:
            state[name] = torch.zeros_like(p) if start is None else start
        return state[name]


def matrix_ids(model: nn.Module) -> set[int]:
    """The ids of the parameters that are matrices of linear maps, as opposed to other parameters with two axes."""
    kinds = (nn.Linear, nn.Embedding, nn.RNNBase)
    modules = [module for module in model.modules() if isinstance(module, kinds)]
    return {id(p) for module in modules for p in module.parameters(recurse=False) if p.dim() == 2}


def make_optimizer(model: nn.Module, config: OptimConfig) -> MuonAdamW:
    """Muon (if chosen) for the matrices of the blocks, AdamW for the rest; weight decay on matrices only."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    muon: list[Tensor] = []
    known = matrix_ids(model)
    for name, p in model.named_parameters():
        if id(p) not in known:
            others.append(p)
        elif config.name == "muon" and name.startswith("blocks."):
            muon.append(p)
        else:
            matrices.append(p)
    lr = DEFAULT_LR[config.name] if config.lr is None else config.lr
    adamw_group = {"algorithm": "adamw", "lr": lr, "betas": (config.beta1, config.beta2)}
    groups = [
        {**adamw_group, "params": matrices, "weight_decay": config.weight_decay},
        {**adamw_group, "params": others},
    ]
    if muon:
        shared = {"lr": config.muon_lr, "momentum": config.momentum, "weight_decay": config.weight_decay}
        groups.append({"algorithm": "muon", "params": muon, **shared})
    for group in groups:
        group["peak_lr"] = group["lr"]
    return MuonAdamW(groups)


def clip_gradients(model: nn.Module, largest: float) -> Tensor:
    """Scale the gradients so that their norm, over all parameters, is at most `largest`; 0 for no limit.

    Returns that norm before the scaling.
    """
    return nn.utils.clip_grad_norm_(model.parameters(), largest or math.inf)


def set_learning_rate(optimizer: Optimizer, config: OptimConfig, step: int, progress: float) -> None:
    """Set the learning rate of each group for a step; see `lr_factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * lr_factor(config, step, progress)


def lr_factor(config: OptimConfig, step: int, progress: float) -> float:
    """Learning rate of a step as a fraction of the peak.

    Args:
        step: index of the step, from 0.
        progress: share of the budget that is used before it.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    progress = min(max(progress, 0.0), 1.0)
    if config.schedule == "constant":
        left = min(1.0, (1 - progress) / config.decay) if config.decay else 1.0
    elif config.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        left = 1 - progress
    return warmup * (config.final_lr + (1 - config.final_lr) * left)
