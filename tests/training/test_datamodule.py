"""Training batches by step and device, and the pieces of validation dealt to the devices."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lm.config.options import COPYING
from lm.config.resolve import parse
from lm.corpora import corpus as corpora
from lm.corpora.batches import Windows
from lm.corpora.copying import IGNORED
from lm.training.datamodule import Batches, CorpusDataModule
from lm.training.loop import make_batch


def device(rank: int, world_size: int, step: int = 0) -> SimpleNamespace:
    """As much of a trainer as these read."""
    return SimpleNamespace(global_rank=rank, world_size=world_size, global_step=step)


def loaders(config, corpus, rank: int, world_size: int):
    data = CorpusDataModule(corpus, config)
    data.trainer = device(rank, world_size)
    return [list(loader) for loader in data.val_dataloader()]


@pytest.fixture
def config(corpus):
    return parse(["--data.corpus", str(corpus), "--data.context", "16", "--data.batch_size", "8", "--seed", "5"])


def test_batches_go_on_from_the_step_at_which_training_is(config):
    config.trainer.accumulate = 2
    corpus = corpora.load(config.data)
    batches = itertools.islice(Batches(corpus, config, device(1, 2, step=7)), 4)
    for batch, (step, part) in zip(batches, [(7, 0), (7, 1), (8, 0), (8, 1)], strict=True):
        expected = make_batch(corpus, config, step, part, 1, 2)
        assert torch.equal(batch.x, expected.x) and torch.equal(batch.y, expected.y)
        assert (batch.part, batch.fresh) == (part, True) and batch.x.shape == (2, 16)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_windows_are_dealt_out_and_the_sequence_is_read_by_all(config, world_size, monkeypatch):
    corpus = corpora.load(config.data)
    monkeypatch.setattr(corpora, "Windows", lambda ids, context: corpora.stream(ids, 100))  # 12 pieces
    dealt = [loaders(config, corpus, rank, world_size) for rank in range(world_size)]
    targets = sorted(y[0, 0].item() for windows, _ in dealt for _, y in windows)
    pieces, sequence = corpus.validation_pieces(16, 10**6)
    assert targets == sorted(int(y[0, 0]) for _, y in pieces) and len(pieces) == 12
    assert [len(windows) for windows, _ in dealt] == [12 // world_size] * world_size
    for _, read in dealt:
        assert np.array_equal(torch.cat([y for _, y in read], 1)[0], corpus.validation[1:]) and len(read) == len(
            sequence
        )


def test_pieces_are_not_made_before_they_are_read(config, monkeypatch):
    """A list of them would hold the split twice, with eight bytes a character."""
    data = CorpusDataModule(corpora.load(config.data), config)
    data.trainer = device(0, 1)
    made, make = [], Windows.__getitem__
    monkeypatch.setattr(Windows, "__getitem__", lambda self, index: made.append(index) or make(self, index))
    windows, sequence = map(iter, data.val_dataloader())
    assert made == []
    next(windows), next(sequence)
    assert made == [0, 0]


def test_a_device_without_a_piece_gets_one_that_scores_nothing(config):
    for name, count in ((config.data.corpus, 2), (COPYING, 1)):
        config.data.corpus, config.data.context = name, 109 if name != COPYING else 32
        first, second = (loaders(config, corpora.load(config.data), rank, 2) for rank in range(2))
        assert len(first) == len(second) == count and (first[0][0][1] != IGNORED).any()
        ((_, y),) = second[0]
        assert (y == IGNORED).all()
