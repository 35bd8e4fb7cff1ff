"""train.py's seconds per step over those of a bare loop with the same model, batches and optimiser."""

import csv
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from lm.config.options import Config
from lm.config.resolve import parse
from lm.corpora.batches import random_windows
from lm.corpora.corpus import load_corpus
from lm.files import UserError
from lm.model import LanguageModel
from lm.training.loss import nll
from lm.training.optim import lr_factor, make_optimizer


def bare_loop(config: Config, steps: int) -> tuple[float, LanguageModel]:
    """Train without Lightning, metrics or checkpoints. Returns the seconds per step after the first tenth."""
    corpus = load_corpus(config.data)
    torch.manual_seed(config.seed)
    model = LanguageModel(len(corpus.tokenizer), config.model).train()
    optimizer = make_optimizer(model, config.optim)
    start = 0.0
    for step in range(steps):
        if step == steps // 10:
            start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * lr_factor(config.optim, step, step / steps)
        pieces = random_windows(corpus.train, config.data.context, config.seed, step, range(config.data.batch_size))
        x, y = (torch.from_numpy(piece) for piece in pieces)
        nll(model(x)[0], y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - start) / (steps - steps // 10), model


def through_train_py(steps: int, options: list[str]) -> tuple[float, LanguageModel]:
    """The same through train.py, as it runs by default: wandb offline, metrics, a progress bar."""
    from lm.runs.load import load
    from lm.training import main as train

    with tempfile.TemporaryDirectory() as folder:
        argv = ["--runs", folder, "--name", "a", "--eval.every", "1000000", "--trainer.max_steps", str(steps), *options]
        argv += ["--log.every", str(min(10, max(1, steps // 3)))]  # the default, unless the run is shorter
        if code := train.main(argv):
            raise UserError(f"train.py ended with code {code}")
        with (Path(folder) / "a" / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["train/loss"]]
        first, last = rows[0], rows[-1]
        model, _ = load(Path(folder) / "a" / "checkpoints" / "last.ckpt")
    seconds = float(last["train_seconds"]) - float(first["train_seconds"])
    return seconds / (int(last["step"]) - int(first["step"])), model


def run(arguments: SimpleNamespace) -> dict[str, Any]:
    """Alternate both, and compare their medians; first make sure that they end with the same weights."""
    options = ["--trainer.accelerator", "cpu"]
    config = parse([*options, "--trainer.max_steps", str(arguments.steps)])
    bare, ours = [], []
    for _ in range(arguments.repeat):
        seconds, model = bare_loop(config, arguments.steps)
        bare.append(seconds)
        seconds, trained = through_train_py(arguments.steps, options)
        ours.append(seconds)
        for (name, p), q in zip(model.named_parameters(), trained.parameters(), strict=True):
            if not torch.equal(p, q):
                raise UserError(f"train.py and the bare loop differ in {name}: nothing to compare")
    ratio = statistics.median(ours) / statistics.median(bare)
    print(f"{'':12} {'ms/step':>9}   all runs")
    for name, values in (("bare loop", bare), ("train.py", ours)):
        print(f"{name:12} {1000 * statistics.median(values):9.1f}   {', '.join(f'{1000 * v:.1f}' for v in values)}")
    print(f"train.py / bare loop = {ratio:.3f}")
    return {"bare": bare, "train.py": ours, "ratio": ratio}
