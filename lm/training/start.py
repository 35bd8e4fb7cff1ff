"""The start of a training: what is prepared before and while torch is imported, and where the seconds go."""

import ctypes
import importlib
import os
import time
from contextlib import suppress
from pathlib import Path

from lm.config.options import Config
from lm.files import import_optional
from lm.native.build import build_ahead
from lm.training.lightning import import_lightning

PACKAGE = Path(__file__).parents[1]
SCANS = {"mingru": "recurrence/scan.c", "minlstm": "recurrence/scan.c", "mamba": "recurrence/selective.c"}
"""The kernels of mixers that have their own; those of others are compiled when they are called."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""


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
    names += ["ops/elementwise.c", "ops/affine.c", *(["training/muon.c"] if config.optim.name == "muon" else [])]
    return [PACKAGE / name for name in dict.fromkeys(names)]


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next step, instead of returning large blocks to the system.

    The system clears each page that it gives again: some hundreds to thousands of them, a tenth of the time of a step.
    Does nothing where the C library is not glibc.
    """
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that older versions accept


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
    if config.log.artifacts:
        import_optional("wandb", "log.artifacts")
    if config.log.tensorboard:
        import_optional("tensorboard", "log.tensorboard")
    importlib.import_module("torch")
    stages.end("import torch")
    import_lightning()
    stages.end("import Lightning")
