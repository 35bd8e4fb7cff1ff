"""What native kernels have in common; `choose` itself is tested where it is used, in tests/recurrence and tests/ops."""

import pytest
import torch

from lm.native import choice
from lm.recurrence import cpu, portable


def test_small_tensors_have_one_thread(threads):
    threads(3)
    counts = [choice.thread_count(n) for n in (0, choice.SMALL - 1, choice.SMALL, 2 * choice.SMALL, 100 * choice.SMALL)]
    assert counts == [1, 1, 2, 3, 3]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_operations_without_triton_kernels(compiler, monkeypatch, device):
    """Where Triton is asked for, or would be taken, they have portable ones."""

    class On:
        dtype = torch.float32

    On.device = torch.device(device)
    monkeypatch.setenv("LM_BACKEND", "triton")
    assert choice.choose(On(), portable, cpu) is portable
    monkeypatch.setenv("LM_BACKEND", "auto")
    assert choice.choose(On(), portable, cpu) is (cpu if device == "cpu" else portable)
