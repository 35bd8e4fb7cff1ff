"""Errors of the machine as one line."""

import pytest
import torch

from lm.files import UserError
from lm.training.errors import user_errors
from lm.training.task import Task

REMEDY = "out of memory: lower data.batch_size, data.context or model.width, or raise trainer.accumulate"


def test_a_model_that_does_not_fit_leaves_nothing(run_train, tmp_path, capsys):
    run_train("a", "--model.width", "65536", "--model.mlp_expansion", "100", code=2)  # a matrix of 1.7 TB
    assert REMEDY in capsys.readouterr().err and not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "error", [torch.distributed.DistNetworkError("Ping failed."), RuntimeError("timed out\n at x.")]
)
def test_processes_that_do_not_meet_are_one_line(error):
    with pytest.raises(UserError) as refused, user_errors():
        raise error
    assert str(refused.value).startswith("another process of this training has died or cannot be reached: ")
    assert str(refused.value).endswith(("Ping failed", "timed out"))


def allocate_too_much(*_):
    return torch.empty(10**15)


def refuse_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def exhaust_python(*_):
    raise MemoryError


@pytest.mark.parametrize("fail", [allocate_too_much, refuse_memory, exhaust_python])
def test_out_of_memory_names_what_to_lower(cut, capsys, monkeypatch, fail):
    monkeypatch.setattr(Task, "training_step", fail)
    assert cut.resume() == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert REMEDY in error and "--resume" in error
    monkeypatch.undo()
    assert cut.comes_to_the_same_end()
