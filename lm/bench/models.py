"""Mixers and models for the benchmarks: a mixer gets those of the given options that it has; no weight is zero."""

import inspect
from typing import Any

import torch
from torch import nn

from lm.config.options import MixerOptions, ModelConfig
from lm.mixers import MIXERS, Mixer
from lm.model import LanguageModel


def accepted(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options that this mixer has."""
    known = inspect.signature(MIXERS[name]).parameters
    return {option: value for option, value in options.items() if option in known}


def make_mixer(name: str, width: int, **options: Any) -> Mixer:
    """One mixer, from a fixed seed."""
    torch.manual_seed(0)
    return MIXERS[name](width, **accepted(name, options))


def make(name: str, width: int, layers: int, vocabulary: int, mlp: str = "relu2", **options: Any) -> LanguageModel:
    """A model with this mixer, from a fixed seed. No matrix is zero, as some are at the start of training."""
    torch.manual_seed(0)
    mixer_options = MixerOptions(**accepted(name, options))
    config = ModelConfig(name, mixer_options, width, layers, mlp, residual_init=1.0)  # type: ignore[arg-type]
    model = LanguageModel(vocabulary, config)
    nn.init.normal_(model.head.weight, std=width**-0.5)
    return model
