"""A device that is not a CPU, pretended: its tensors lie in the CPU's memory, and every operation on them is seen.

    python -m tests.harness.pretended

trains, validates and generates on that device with every mixer but torch's own gru and lstm. It prints each operation
there that makes a float64 tensor, with the line of lm/ that called it. Apple's GPUs have no float64. Exit code 1 if
there is one.
"""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

torch.inference_mode = torch.no_grad  # type: ignore[assignment, misc]  # which such tensors know; before lm is imported

from lm.config.options import COPYING, Config, DataConfig, MixerOptions, ModelConfig, OptimConfig, TrainerConfig  # noqa: E402
from lm.corpora.batches import Windows, stream  # noqa: E402
from lm.mixers import MIXERS  # noqa: E402
from lm.model import LanguageModel  # noqa: E402
from lm.native.operation import OPERATIONS  # noqa: E402
from lm.sampling import decoder  # noqa: E402
from lm.sampling.filters import SamplingOptions  # noqa: E402
from lm.training.clock import Clock  # noqa: E402
from lm.training.loop import Batch, training_loss  # noqa: E402
from lm.training.loss import score  # noqa: E402
from lm.training.optim import clip_gradients, make_optimizer  # noqa: E402
from lm.training.task import Task  # noqa: E402

WIDE = (torch.float64, torch.complex128)
VOCABULARY = 11


class BackendModule(backend_registration._DummyBackendModule):
    """What torch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


backend_registration._setup_privateuseone_for_python_backend("pretended", backend_module=BackendModule())
DEVICE = torch.device("pretended", 0)


class Pretended(Tensor):
    """A tensor on the pretended device, around one on the CPU."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Pretended":
        x = Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )
        x.inner = inner
        return x

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), options=None):
        raise AssertionError(f"{operation} outside of the mode")


class Watch(TorchDispatchMode):
    """Computes on the pretended device, and notes who makes float64 tensors there."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.found: set[str] = set()

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        options = dict(options or {})
        if operation.namespace == "lm":  # the kernels' own operations, not one opaque one
            with self:
                return OPERATIONS[operation._schema.name].function(*arguments, **options)
        ours = {id(x.inner): x for x in tree_leaves((arguments, options)) if isinstance(x, Pretended)}
        there = bool(ours)
        if options.get("device") is not None:
            there = torch.device(options["device"]).type == DEVICE.type
            options["device"] = "cpu"
        results = operation(
            *tree_map(_inner, arguments), **{name: tree_map(_inner, value) for name, value in options.items()}
        )
        return tree_map(lambda x: self._outer(x, ours, there, operation) if isinstance(x, Tensor) else x, results)

    def _outer(self, x: Tensor, ours: dict[int, Pretended], there: bool, operation: Any) -> Tensor:
        """A result as the caller sees it: an operation in place returns its own argument."""
        if not there:
            return x
        self.operations += 1
        if x.dtype in WIDE:
            calls = [frame for frame in traceback.extract_stack() if "/lm/" in frame.filename]
            self.found.add(f"{calls[-1].filename.rpartition('/lm/')[2]}: {calls[-1].line} ({operation})")
        return ours[id(x)] if id(x) in ours else Pretended(x)


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, Pretended) else x


@contextmanager
def watching() -> Iterator[Watch]:
    """All operations within are seen."""
    os.environ["LM_BACKEND"] = "auto"
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor copies to the device where it can be seen
    with Watch() as watch:
        yield watch


def train(model: LanguageModel, config: OptimConfig) -> None:
    """Two optimiser steps, the second from the first one's states."""
    optimizer, states = make_optimizer(model, config), {}
    for _ in range(2):
        x, y = (torch.randint(VOCABULARY, (2, 40)).to(DEVICE) for _ in range(2))
        training_loss(model, Batch(x, y, 0, fresh=not states), states, Config()).backward()
        clip_gradients(optimizer, 0.1)
        optimizer.step()
        optimizer.zero_grad()


def measure(model: LanguageModel, mixer: str) -> None:
    """The losses of `char-lm evaluate`, and the metrics of validation."""
    ids = np.arange(300) % VOCABULARY
    score(model, Windows(ids, 64))
    score(model, stream(ids, 128), carry=True)
    clock = Clock(TrainerConfig(max_steps=1))
    for corpus in ("tiny_shakespeare", COPYING):
        config = Config(model=ModelConfig(mixer=mixer), data=DataConfig(corpus=corpus))
        task = Task(model, config, "abcdefghij", clock).to(DEVICE)
        task.on_validation_epoch_start()
        with torch.inference_mode():
            for loader in (0, 1, 1):
                x, y = (torch.randint(VOCABULARY, (1, 40)).to(DEVICE) for _ in range(2))
                task.validation_step((x, y), 0, loader)
            task.validation_results()


def generate(model: LanguageModel) -> None:
    """Read, score, and write with two samples."""
    ids = np.arange(30) % (VOCABULARY - 1)
    _, position = decoder.score(model, ids)
    _, position = decoder.score(model, ids, position)
    texts = decoder.Decoder(model, [position] * 2)
    for options in (SamplingOptions(0.8), SamplingOptions(0.0), SamplingOptions(1.0, 5, 0.9, 0.1)):
        texts.write(options, 4)
    texts.position(1)


def main() -> int:
    failed = 0
    for mixer in sorted(set(MIXERS) - {"gru", "lstm"}):  # torch wants fused cells of such a device
        torch.manual_seed(0)
        with watching() as watch:
            options = MixerOptions(window=16) if mixer == "attention" else MixerOptions()
            config = ModelConfig(mixer, options, width=16, layers=1, dropout=0.1, residual_init=1.0)
            model = LanguageModel(VOCABULARY, config).to(DEVICE)
            for name in ("muon", "adamw"):
                train(model, OptimConfig(name))
            model.eval()
            measure(model, mixer)
            generate(model)
        print(f"{mixer}: {watch.operations} operations, {len(watch.found)} of them float64")
        for place in sorted(watch.found):
            print("   ", place)
        failed |= bool(watch.found)
    return failed


if __name__ == "__main__":
    sys.exit(main())
