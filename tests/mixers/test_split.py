"""Sequences cut over processes: outputs, states and gradients are those of one process."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.functional import cross_entropy

from lm.config.options import ModelConfig
from lm.config.resolve import CHUNKABLE, parse
from lm.files import UserError
from lm.mixers import split
from lm.mixers.split import is_split, time_split
from lm.model import LanguageModel

V, B, T = 9, 2, 240


def make(mixer: str, dtype: torch.dtype) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(V, ModelConfig(mixer, width=16, layers=2, residual_init=1.0)).to(dtype)
    torch.nn.init.normal_(model.head.weight)
    return model


def work(rank: int, size: int, port: int, dtype: torch.dtype) -> None:
    """Compare the gradient of each process's stretch, averaged over processes, with that of the whole."""
    torch.set_num_threads(1)
    split.PIECE = 50  # of 120 or 60 steps, so that the last piece is a shorter one
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    torch.manual_seed(1)
    x, y = torch.randint(V, (B, T)), torch.randint(V, (B, T))
    for mixer in CHUNKABLE:
        model = make(mixer, dtype)
        logits, end = model(x)
        cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
        wanted = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        mine_x, mine_y = (part.chunk(size, dim=1)[rank] for part in (x, y))
        with time_split():
            assert is_split()
            mine, state = model(mine_x)
        torch.testing.assert_close(mine, logits.chunk(size, dim=1)[rank], rtol=1e-4, atol=1e-5)
        if rank == size - 1:
            for layer, expected in zip(state, end, strict=True):
                for got, want in zip(layer, expected, strict=True):
                    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        cross_entropy(mine.flatten(0, 1), mine_y.flatten()).backward()
        for p, gradient in zip(model.parameters(), wanted, strict=True):
            dist.all_reduce(p.grad)
            assert (p.grad / size - gradient).norm() <= 1e-5 * gradient.norm() + 1e-10, mixer
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("size", "dtype"), [(2, torch.float64), pytest.param(4, torch.float32, marks=pytest.mark.slow)]
)
def test_stretches_together_have_the_gradient_of_the_whole(size, dtype, unused_port):
    mp.spawn(work, (size, unused_port, dtype), nprocs=size)


def test_one_process_is_not_split():
    with time_split():
        assert not is_split()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("--model.mixer attention", "attention cannot be cut"),
        ("--model.mixer [mingru,gru,mingru]", "gru cannot be cut"),
        ("--data.corpus selective_copying", "selective_copying cannot be cut"),
        ("--data.context 129", "data.context 129 cannot be cut into 2 equal stretches"),
        ("--data.context 6", "longer than the convolution"),
        ("--trainer.chunk 64", "neither with distill.teachers nor"),
    ],
)
def test_what_cannot_be_cut_is_refused(options, error):
    with pytest.raises(UserError, match=error):
        parse([*options.split(), "--trainer.split", "time", "--trainer.devices", "2"])


def test_any_batch_can_be_cut_in_time():
    assert parse(["--data.batch_size", "1", "--trainer.split", "time", "--trainer.devices", "2"]).data.batch_size == 1
