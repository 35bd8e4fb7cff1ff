"""The start of a training: what is prepared before and while torch is imported, and where the seconds go."""

import importlib
import os
import time
from contextlib import suppress
from pathlib import Path

from lm.config.options import Config
from lm.native.build import build_ahead
from lm.training.lightning import import_lightning

PACKAGE = Path(__file__).parents[1]
SCANS = {"mingru": "recurrence/scan.c", "minlstm": "recurrence/scan.c", "mamba": "recurrence/selective.c"}
"""The kernels of mixers that have their own."""


class Stages:
    """The seconds of each part of the start.

    Args:
        started: when the process began, by `time.monotonic`.
    """

    def __init__(self, started: float) -> None:
        self.started = self.last = started
        self.seconds: dict[str, float] = {}

    def end(self, name: str) -> None:
        """A part has ended; the next begins."""
        now = time.monotonic()
        self.seconds[name] = round(now - self.last, 3)
        self.last = now

    def end_once(self, name: str) -> None:
        """The same, unless the part has ended before."""
        if name not in self.seconds:
            self.end(name)


def kernels(config: Config) -> list[Path]:
    """The C files that a training on a CPU calls in its first step."""
    mixers = [config.model.mixer] if isinstance(config.model.mixer, str) else config.model.mixer
    names = [SCANS[name] for name in dict.fromkeys(mixers) if name in SCANS]
    names += ["ops/elementwise.c", *(["training/muon.c"] if config.optim.name == "muon" else [])]
    return [path for name in dict.fromkeys(names) if (path := PACKAGE / name).exists()]


def import_libraries(config: Config, stages: Stages) -> None:
    """Import wandb, torch and Lightning, while the kernels that are not in the cache are compiled.

    wandb comes first, if it is used: it looks through all modules, which takes half a second more after torch.
    """
    if config.trainer.accelerator in ("auto", "cpu") and os.environ.get("LM_BACKEND", "auto") in ("auto", "native"):
        build_ahead(*kernels(config))
    if config.log.wandb != "disabled":
        with suppress(ImportError):
            importlib.import_module("wandb.apis.public")
        stages.end("import wandb")
    importlib.import_module("torch")
    stages.end("import torch")
    import_lightning()
    stages.end("import Lightning")
