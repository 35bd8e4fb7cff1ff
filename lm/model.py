"""The language model: embedding, pre-norm residual blocks, final norm, head. Plain nn.Module, no Lightning.

Model, block and mixer have the same three methods: `init_state(batch)`, `forward(x, state)` for sequences, and
`step(x, state)` for one character.
"""

import inspect
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from lm.config.options import ModelConfig
from lm.files import UserError
from lm.mixers import MIXERS, Mixer, State
from lm.ops import Dropout, Linear, RMSNorm, branch_type, squared_relu_mlp
from lm.ops.branch import MLPBranch

ModelState = tuple[State, ...]
"""One mixer state per layer."""


class MLP(nn.Module):
    """Position-wise network: squared ReLU, GELU, or SwiGLU (arXiv 2002.05202) at an equal number of parameters."""

    def __init__(self, width: int, expansion: float, kind: str) -> None:
        super().__init__()
        self.kind = kind
        hidden = round(width * expansion * (2 / 3 if kind == "swiglu" else 1))
        self.up = Linear(width, hidden * (2 if kind == "swiglu" else 1), bias=False)
        self.down = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "relu2":
            return squared_relu_mlp(x, self.up.weight, self.down.weight)
        x = self.up(x)
        if self.kind == "gelu":
            return self.down(gelu(x))
        gate, x = x.chunk(2, dim=-1)
        return self.down(silu(gate) * x)

    def branch(self, x: Tensor, norm: RMSNorm, dropout: Dropout) -> Tensor:
        """x + dropout(forward(norm(x)))."""
        drops = dropout.training and dropout.p > 0
        dtype = None if drops or self.kind != "relu2" else branch_type(x, [self.up, self.down], [norm.weight])
        if dtype is None:
            return dropout.add(x, self(norm(x)))
        return MLPBranch.apply(dtype, norm.epsilon, x.contiguous(), norm.weight, self.up.weight, self.down.weight)


class Block(nn.Module):
    """Two residual branches, each after a norm: a mixer over time and, unless `mlp` is none, an MLP over channels."""

    def __init__(self, mixer: Mixer, config: ModelConfig) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm_mixer = RMSNorm(config.width)
        self.mlp = None if config.mlp == "none" else MLP(config.width, config.mlp_expansion, config.mlp)
        self.norm_mlp = None if self.mlp is None else RMSNorm(config.width)
        self.dropout = Dropout(config.dropout)

    def init_state(self, batch: int) -> State:
        return self.mixer.init_state(batch)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        x, state = self.mixer.branch(x, state, self.norm_mixer, self.dropout)
        return self._add_mlp(x), state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = self.mixer.step(self.norm_mixer(x), state)
        return self._add_mlp(self.dropout.add(x, y)), state

    def _add_mlp(self, x: Tensor) -> Tensor:
        if self.mlp is None or self.norm_mlp is None:
            return x
        return self.mlp.branch(x, self.norm_mlp, self.dropout)


class LanguageModel(nn.Module):
    """Predicts the next character id.

    Args:
        vocabulary: number of ids, the unknown included.
        config: width, layers, mixers and their options.
    """

    def __init__(self, vocabulary: int, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, config.width)
        self.dropout = Dropout(config.dropout)
        blocks = [Block(mixer, config) for mixer in make_mixers(config)]
        self.blocks = cast("list[Block]", nn.ModuleList(blocks))  # for mypy
        self.norm = RMSNorm(config.width)
        self.head = Linear(config.width, vocabulary, bias=False)
        self._init_weights(config.residual_init)

    def _init_weights(self, residual_init: float) -> None:
        """Standard deviation 1 / sqrt(fan-in); times residual_init / sqrt(2 layers) for outputs of residual branches.

        GPT-2 has `residual_init` 1, and biases of zero there. The head starts at zero, so that the first loss is
        ln(vocabulary).
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and not name.endswith(".dt"):  # Mamba initialises its own
                writes = name.endswith((".down", ".output"))
                std = module.in_features**-0.5 * (residual_init * (2 * len(self.blocks)) ** -0.5 if writes else 1.0)
                nn.init.normal_(module.weight, std=std)
                if writes and module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.embedding.weight, std=1.0)
        nn.init.zeros_(self.head.weight)

    def init_state(self, batch: int) -> ModelState:
        """The state before the first character, for so many sequences."""
        return tuple(block.init_state(batch) for block in self.blocks)

    def forward(self, ids: Tensor, state: ModelState | None = None) -> tuple[Tensor, ModelState]:
        """ids (B, T) -> logits of the next id at each position (B, T, V), and the state after the last."""
        x = self.dropout(self.embedding(ids))
        states = []
        for block, s in zip(self.blocks, state or (None,) * len(self.blocks), strict=True):
            x, s = block(x, s)
            states.append(s)
        return self.head(self.norm(x)), tuple(states)

    def step(self, ids: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """ids (B,) -> logits of the next id (B, V), and the state."""
        x = self.dropout(self.embedding(ids))
        states = []
        for block, s in zip(self.blocks, state, strict=True):
            x, s = block.step(x, s)
            states.append(s)
        return self.head(self.norm(x)), tuple(states)

    @property
    def parameters_total(self) -> int:
        """The number of trainable parameters."""
        return sum(p.numel() for p in self.parameters())

    def flops(self, context: int) -> float:
        """Floating-point operations of the forward pass per character; training takes three times as many."""
        mixers = sum(block.mixer.flops(context) for block in self.blocks)
        mlps = sum(2.0 * p.numel() for block in self.blocks if block.mlp for p in block.mlp.parameters())
        return mixers + mlps + 2.0 * self.head.weight.numel()


class Ensemble(nn.Module):
    """Several models with the same vocabulary as one, which predicts the mean of their probabilities."""

    def __init__(self, models: Sequence[LanguageModel]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(
        self, ids: Tensor, state: tuple[ModelState, ...] | None = None
    ) -> tuple[Tensor, tuple[ModelState, ...]]:
        """ids (B, T) -> log-probabilities of the next id in float32 (B, T, V), and the states of all models."""
        logits, states = zip(
            *(model(ids, s) for model, s in zip(self.models, state or (None,) * len(self.models), strict=True)),
            strict=True,
        )
        scores = torch.stack([part.float().log_softmax(-1) for part in logits])
        return scores.logsumexp(0) - math.log(len(scores)), states


def make_mixers(config: ModelConfig) -> list[Mixer]:
    """One mixer per layer; each option goes to the mixers that have it. Raises UserError for one that no mixer has."""
    names = [config.mixer] * config.layers if isinstance(config.mixer, str) else config.mixer
    given = {name: value for name, value in vars(config.options).items() if value is not None}
    accepted = {name: inspect.signature(MIXERS[name]).parameters for name in names}
    for option in given:
        if not any(option in parameters for parameters in accepted.values()):
            raise UserError(f"model.options.{option} is not an option of {' or '.join(sorted(set(names)))}")
    try:
        return [MIXERS[name](config.width, **{o: v for o, v in given.items() if o in accepted[name]}) for name in names]
    except ValueError as error:
        raise UserError(str(error)) from None
