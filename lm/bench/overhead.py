"""Seconds per step of `char-lm train` over those of a bare loop with the same model, batches and optimiser."""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from lm.bench import measure, options, trainings
from lm.config.options import Config
from lm.config.resolve import parse
from lm.corpora.corpus import load_corpus
from lm.files import UserError
from lm.model import LanguageModel
from lm.runs.load import load
from lm.training.loop import train


def bare_loop(config: Config) -> tuple[float, LanguageModel]:
    """Train by `lm.training.loop`. Returns the seconds per step after the first tenth."""
    corpus = load_corpus(config.data)
    torch.manual_seed(config.seed)
    model = LanguageModel(len(corpus.tokenizer), config.model).train()
    times = [time.perf_counter(), *(time.perf_counter() for _ in train(model, corpus, config))]
    counted = times[(len(times) - 1) // 10 :]
    return (counted[-1] - counted[0]) / (len(counted) - 1), model


def whole_command(steps: int, words: list[str]) -> tuple[float, LanguageModel]:
    """The same by `char-lm train` as it runs by default: wandb offline, metrics, a progress bar."""
    with tempfile.TemporaryDirectory() as folder:
        run = trainings.train_here(Path(folder), "a", steps, words)
        return trainings.seconds_per_step(run), load(run / "checkpoints" / "last.ckpt")[0]


def require_same(bare: LanguageModel, trained: LanguageModel) -> None:
    """Raises UserError if the weights of both differ in a bit."""
    for (name, p), q in zip(bare.named_parameters(), trained.parameters(), strict=True):
        if not torch.equal(p, q):
            raise UserError(f"char-lm train and the bare loop differ in {name}: nothing to compare")


def run(arguments: options.Overhead) -> measure.Row:
    """Alternate both and compare their medians, after making sure that they end with the same weights."""
    words = ["--trainer.accelerator", "cpu", "--trainer.precision", "32"]  # those of lm.training.loop
    config = parse([*words, "--trainer.max_steps", str(arguments.steps)])
    bare, ours = [], []
    for _ in range(arguments.repeat):
        seconds, model = bare_loop(config)
        bare.append(seconds)
        seconds, trained = whole_command(arguments.steps, words)
        ours.append(seconds)
        require_same(model, trained)
    ratio = statistics.median(ours) / statistics.median(bare)
    rows = [{"name": "bare loop", "times": bare}, {"name": "char-lm train", "times": ours}]
    measure.print_table(("", "ms/step", "all runs"), rows, table_row)
    print(f"char-lm train / bare loop = {ratio:.3f}")
    return {"bare": bare, "train": ours, "ratio": ratio}


def table_row(row: measure.Row) -> tuple[str, str]:
    """The cells of one of the two."""
    return f"{1000 * statistics.median(row['times']):.1f}", ", ".join(f"{1000 * t:.1f}" for t in row["times"])
