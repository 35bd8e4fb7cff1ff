"""The training algorithm, without Lightning, metrics and checkpoints: start reading here.

`lm.training.task` does the same within Lightning, on any number of devices, and is made of the same functions; a test
shows that both come to the same weights, to the bit.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lm.config.options import Config
from lm.corpora.copying import Copying
from lm.corpora.corpus import Corpus
from lm.mixers.split import time_split
from lm.model import LanguageModel, ModelState
from lm.training.chunks import chunked_loss
from lm.training.loss import divergence, nll
from lm.training.optim import clip_gradients, make_optimizer, set_learning_rate


class Batch(NamedTuple):
    """The part of a step's batch that a device reads at once."""

    x: Tensor
    """inputs (B, T)"""
    y: Tensor
    """targets (B, T)"""
    part: int
    """its index, of trainer.accumulate parts"""
    fresh: bool
    """whether it starts from the initial state, instead of the state after the same part of the last batch"""
    teacher: Tensor | None = None
    """the probabilities of the targets (B, T, V) according to distill.teachers"""


def train(model: LanguageModel, corpus: Corpus | Copying, config: Config) -> Iterator[float]:
    """Train for `config.trainer.max_steps` steps in float32. Yields the loss of each step, in nats per character."""
    assert config.trainer.max_steps, "a budget of minutes needs the clock of lm.training.task"
    steps, parts = config.trainer.max_steps, config.trainer.accumulate
    optimizer = make_optimizer(model, config.optim)
    states: dict[int, ModelState] = {}
    for step in range(steps):
        set_learning_rate(optimizer, config.optim, step, step / steps)
        loss = 0.0
        for part in range(parts):
            seed_part(config.seed, step, part)
            batch = make_batch(corpus, config, step, part)
            part_loss = training_loss(model, batch, states, config) / parts
            part_loss.backward()
            loss += part_loss.item()
        clip_gradients(optimizer, config.optim.clip)
        optimizer.step()
        optimizer.zero_grad()
        yield loss


def seed_part(seed: int, step: int, part: int, rank: int = 0) -> None:
    """Seed torch's generators, from which dropout draws: a step does not depend on the steps before it."""
    state = np.random.SeedSequence([seed, step, part, rank]).generate_state(1, np.uint64)
    number = int(state[0] >> 1)
    torch.default_generator.manual_seed(number)  # torch.manual_seed also formats a traceback where no GPU is in use
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)


def make_batch(
    corpus: Corpus | Copying, config: Config, step: int, part: int, rank: int = 0, world_size: int = 1
) -> Batch:
    """One part of a step's batch, and of that what one of `world_size` devices has: rows, or stretches of all rows."""
    by_time = config.trainer.split == "time"
    cut, own = (1, 0) if by_time else (world_size, rank)  # of the rows
    rows = config.data.batch_size // (config.trainer.accumulate * cut)
    first = (part * cut + own) * rows
    arguments = config.data, config.seed, step, range(first, first + rows)
    (x, y), fresh = corpus.batch(*arguments)
    teacher = corpus.teacher_batch(*arguments) if isinstance(corpus, Corpus) else None
    batch = [None if array is None else torch.from_numpy(array) for array in (x, y, teacher)]
    if by_time:
        batch = [None if tensor is None else tensor.chunk(world_size, dim=1)[rank] for tensor in batch]
    assert batch[0] is not None and batch[1] is not None
    return Batch(batch[0], batch[1], part, fresh, batch[2])


def training_loss(model: LanguageModel, batch: Batch, states: dict[int, ModelState], config: Config) -> Tensor:
    """Mean loss of a batch. `states` keeps the state after each part, from which the next batch may continue."""
    start, chunk = None if batch.fresh else states.get(batch.part), config.trainer.chunk
    if 0 < chunk < batch.x.shape[1]:
        loss, states[batch.part] = chunked_loss(model, batch.x, batch.y, start, chunk)
        return loss
    with time_split(config.trainer.split == "time"):
        logits, state = model(batch.x, start)
    states[batch.part] = tuple(tuple(tensor.detach() for tensor in layer) for layer in state)
    loss, weight = nll(logits, batch.y), config.distill.weight
    return loss if batch.teacher is None else (1 - weight) * loss + weight * divergence(logits, batch.teacher)
