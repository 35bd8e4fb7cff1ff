"""The optimiser, gradient clipping, and the learning-rate schedule."""

import inspect
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from lm.config.options import DEFAULT_LR, OptimConfig
from lm.ops import total_norm
from lm.training import muon


class MuonAdamW(Optimizer):
    """Muon and AdamW as one optimiser; each parameter group has its algorithm.

    Args:
        groups: have `algorithm` ("muon" or "adamw"), `lr`, `weight_decay`; AdamW also `betas`, Muon `momentum`,
            `polynomials` (see `lm.training.muon.POLYNOMIALS`) and `beta2`, 0 for Muon without NorMuon's second moment.
            Weight decay is decoupled: p <- p (1 - lr * weight_decay).
    """

    # Without torch's wrappers, which import the compiler, in a second, to keep it out of these.
    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        defaults = {"weight_decay": 0.0, "betas": (0.9, 0.99), "momentum": 0.95, "beta2": 0.0, "polynomials": "jordan5"}
        super().__init__(groups, defaults)

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
        momenta, seconds = [self._buffer(p, "momentum") for p in parameters], []
        if group["beta2"]:
            seconds = [self._buffer(p, "second_moment", (p.shape[0], 1)) for p in parameters]
        muon.update(parameters, grads, momenta, seconds, group)

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor], grads: list[Tensor]) -> None:
        adamw(
            parameters,
            grads,
            [self._buffer(p, "exp_avg") for p in parameters],
            [self._buffer(p, "exp_avg_sq") for p in parameters],
            [],
            [self._buffer(p, "step", ()) for p in parameters],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )

    def _buffer(self, p: Tensor, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """What the optimiser keeps of p under this name: at first zeros, like p or of another shape in float32."""
        state = self.state[p]
        if name not in state:
            state[name] = torch.zeros_like(p) if shape is None else p.new_zeros(shape, dtype=torch.float32)
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
        shared = {"lr": config.muon_lr, "momentum": config.momentum, "beta2": config.muon_beta2}
        how = {"weight_decay": config.weight_decay, "polynomials": config.muon_polynomials}
        groups.append({"algorithm": "muon", "params": muon, **shared, **how})
    for group in groups:
        group["peak_lr"], group["first_decay"] = group["lr"], group.get("weight_decay", 0.0)
    return MuonAdamW(groups)


def clip_gradients(optimizer: Optimizer, largest: float) -> Tensor:
    """Scale the gradients so that their norm, over all parameters, is at most `largest`; 0 for no limit.

    Returns that norm before the scaling.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = total_norm([p.grad for p in parameters])
    if largest and not (norm.device.type == "cpu" and norm <= largest):  # asking a GPU would wait for it
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm


def set_learning_rate(optimizer: Optimizer, config: OptimConfig, step: int, progress: float) -> None:
    """Set the learning rate of each group for a step, see `lr_factor`, and its weight decay."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * lr_factor(config, step, progress)
        if config.final_weight_decay is not None and group["first_decay"]:
            change = config.final_weight_decay - group["first_decay"]
            group["weight_decay"] = group["first_decay"] + change * min(1.0, progress)


def lr_factor(config: OptimConfig, step: int, progress: float) -> float:
    """Learning rate of a step as a fraction of the peak.

    Args:
        step: index of the step, from 0.
        progress: share of the budget that is used before it.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    progress = min(max(progress, 0.0), 1.0)
    progress = progress * config.cycles % 1.0 if progress < 1 else 1.0
    if config.schedule == "constant":
        left = min(1.0, (1 - progress) / config.decay) if config.decay else 1.0
    elif config.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        left = 1 - progress
    return warmup * (config.final_lr + (1 - config.final_lr) * left)
