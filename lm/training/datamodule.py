"""The Lightning data module: batches by step, validation pieces."""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from lm.config.options import Config
from lm.corpora.batches import Piece, random_windows, stream, streams, windows
from lm.corpora.copying import Copying
from lm.corpora.corpus import Corpus


class Batches(IterableDataset):
    """The parts of each step's batch that fall to this device, from the step at which training stands, for ever."""

    def __init__(self, corpus: Corpus | Copying, config: Config, trainer: pl.Trainer) -> None:
        self.corpus, self.config, self.trainer = corpus, config, trainer

    def __iter__(self) -> Iterator[dict[str, Any]]:
        data, parts = self.config.data, self.config.trainer.accumulate
        rows = data.batch_size // (parts * self.trainer.world_size)
        step = self.trainer.global_step
        while True:
            for part in range(parts):
                first = (part * self.trainer.world_size + self.trainer.global_rank) * rows
                mine = range(first, first + rows)
                (x, y), fresh = self._rows(step, mine)
                yield {"x": torch.from_numpy(x), "y": torch.from_numpy(y), "fresh": fresh, "part": part}
            step += 1

    def _rows(self, step: int, rows: range) -> tuple[tuple[np.ndarray, np.ndarray], bool]:
        data, seed = self.config.data, self.config.seed
        if isinstance(self.corpus, Copying):
            return self.corpus.batch(seed, step, rows), True
        if data.sampling == "streams":
            return streams(self.corpus.train, data.context, seed, step, rows, data.batch_size)
        return random_windows(self.corpus.train, data.context, seed, step, rows), True


class CorpusDataModule(pl.LightningDataModule):
    """Training batches by step, and the two readings of the validation split; of a synthetic task, its held-out set."""

    def __init__(self, corpus: Corpus | Copying, config: Config) -> None:
        super().__init__()
        self.corpus, self.config = corpus, config

    def train_dataloader(self) -> Batches:
        assert self.trainer is not None
        return Batches(self.corpus, self.config, self.trainer)

    def val_dataloader(self) -> list[DataLoader]:
        """Windows are dealt out to the devices; the stream is one sequence, which every device reads whole."""
        assert self.trainer is not None
        if isinstance(self.corpus, Copying):
            return [self._deal(self.corpus.validation())]
        whole: Any = list(stream(self.corpus.validation))
        dealt = windows(self.corpus.validation, self.config.data.context)
        return [self._deal(dealt), DataLoader(whole, batch_size=None)]

    def _deal(self, pieces: Iterator[Piece]) -> DataLoader:
        assert self.trainer is not None
        mine: Any = list(pieces)[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(mine, batch_size=None)
