"""Devices other than a CPU, and torch's default type and device."""

import subprocess
import sys

import pytest
import torch

from lm.config.options import MixerOptions, ModelConfig
from lm.mixers import MIXERS
from lm.model import LanguageModel
from tests.commands import ROOT


def test_no_float64_on_other_devices_than_a_cpu():
    """Apple's GPUs have none. In a process of its own, as torch's devices are those of a process."""
    command = [sys.executable, "-m", "tests.harness.pretended"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[:2000]
    assert done.stdout.count(" 0 of them float64") == len(MIXERS) - 2


@pytest.fixture(params=[torch.float64, "meta"], ids=["float64", "meta"])
def default(request):
    """Set torch's default type or device, once called."""

    def call() -> None:
        if isinstance(request.param, torch.dtype):
            torch.set_default_dtype(request.param)
        else:
            torch.set_default_device(request.param)

    yield call
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def run(model: LanguageModel) -> list[torch.Tensor]:
    """Logits and states of a sequence, a continuation and a step, and the gradients of their sum."""
    ids = torch.arange(40, device="cpu").reshape(2, 20) % 11
    first, state = model(ids)
    second, state = model(ids, state)
    fresh, _ = model.step(ids[:, 0], model.init_state(2))
    last, state = model.step(ids[:, 0], state)
    (first.sum() + second.sum() + last.sum() + fresh.sum()).backward()
    outputs = [first, second, fresh, last, *(part for layer in state for part in layer)]
    return [*outputs, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("mixer", MIXERS)
def test_defaults_of_torch_change_nothing(default, backend, monkeypatch, mixer):
    """A model computes the same bits, in its own type and on its own device, whatever the defaults."""
    from lm.recurrence import cpu

    monkeypatch.setattr(cpu, "LARGE", 1)  # so that the pool serves as well
    torch.manual_seed(0)
    options = MixerOptions(window=32) if mixer == "attention" else MixerOptions()
    model = LanguageModel(11, ModelConfig(mixer, options, width=16, layers=1, residual_init=1.0))
    torch.nn.init.normal_(model.head.weight)
    expected = run(model)
    model.zero_grad()
    default()
    got = run(model)
    assert [(x.dtype, x.device) for x in got] == [(x.dtype, x.device) for x in expected]
    assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))
