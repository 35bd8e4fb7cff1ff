"""The Lightning data module: training batches by step, and the pieces of the validation split."""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
from torch.utils.data import DataLoader, IterableDataset, Subset

from lm.config.options import Config
from lm.corpora.copying import IGNORED, Copying
from lm.corpora.corpus import Corpus
from lm.training.loop import Batch, make_batch

NOTHING = np.zeros((1, 1), dtype=np.int64), np.full((1, 1), IGNORED)
"""The piece of a device for which there is none, so that it takes part in the reduction of the metrics."""


class Batches(IterableDataset):
    """The parts of each step's batch for this device, without end, from the step at which training is."""

    def __init__(self, corpus: Corpus | Copying, config: Config, trainer: pl.Trainer) -> None:
        self.corpus, self.config, self.trainer = corpus, config, trainer

    def __iter__(self) -> Iterator[Batch]:
        step, devices = self.trainer.global_step, (self.trainer.global_rank, self.trainer.world_size)
        while True:
            for part in range(self.config.trainer.accumulate):
                yield make_batch(self.corpus, self.config, step, part, *devices)
            step += 1


class CorpusDataModule(pl.LightningDataModule):
    """Training batches, and the validation loaders: windows, and with eval.streaming a text as one sequence."""

    def __init__(self, corpus: Corpus | Copying, config: Config) -> None:
        super().__init__()
        self.corpus, self.config = corpus, config

    def train_dataloader(self) -> Batches:
        """See `Batches`."""
        assert self.trainer is not None
        return Batches(self.corpus, self.config, self.trainer)

    def val_dataloader(self) -> list[DataLoader]:
        """The windows are distributed over the devices; the sequence is read by each device."""
        assert self.trainer is not None
        windows, *sequence = self.corpus.validation_pieces(self.config.data.context, self.config.eval.chars)
        mine = range(self.trainer.global_rank, len(windows), self.trainer.world_size)
        sequence = sequence if self.config.eval.streaming else []
        pieces: list[Any] = [Subset(windows, mine) if mine else [NOTHING], *sequence]  # type: ignore[arg-type]
        return [DataLoader(piece, batch_size=None) for piece in pieces]
