"""One step of `char-lm train` in parts, with the limits of arithmetic beside them.

    data        the batch, on the device
    forward     logits, loss; counted as 2 x parameters x characters operations
    backward    gradients; 4 x parameters x characters
    clipping    the norm of the gradients, and their scaling
    optimiser   learning rate, update, removal of the gradients
    rest        what a step of `char-lm train` takes beyond that: Lightning's loop, metrics, logging

The parts are timed in the algorithm of `lm.training.loop`, which is made of the same functions; on a CPU, both
trainings must end with the same weights. With --against, the speed is compared with another commit's: see
`lm.bench.against`.
"""

import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from lm.bench import against, measure, options, trainings
from lm.bench.measure import Row
from lm.bench.overhead import require_same
from lm.bench.peak import Limits
from lm.config.options import Config
from lm.corpora.corpus import load as load_corpus
from lm.model import LanguageModel, ModelState
from lm.report.format import number
from lm.runs.folder import Run
from lm.runs.load import load
from lm.training.loop import make_batch, seed_part, training_loss
from lm.training.optim import clip_gradients, make_optimizer, set_learning_rate

HEADER = ("", "ms", "of the step", "GFLOP/s", "of sgemm", "of peak")
PARTS = ("data", "forward", "backward", "clipping", "optimiser")
WHOLE = "whole step"
OPERATIONS = {"forward": 2, "backward": 4, WHOLE: 6}
"""Floating-point operations per parameter and character."""
TYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""The type in which matrices are multiplied, by the precision in summary.json."""


class Stopwatch:
    """Adds up the seconds of each part.

    Args:
        device: what to wait for at the end of a part.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict.fromkeys(PARTS, 0.0)
        measure.finish(device)
        self.last = time.perf_counter()

    def lap(self, part: str) -> None:
        """The time since the last lap was that of this part."""
        measure.finish(self.device)
        now = time.perf_counter()
        self.seconds[part] += now - self.last
        self.last = now


def train_in_parts(config: Config, device: torch.device, dtype: torch.dtype) -> tuple[dict[str, float], LanguageModel]:
    """Train as `lm.training.loop` does. Returns the seconds per step of each part, after the first tenth of them."""
    assert config.trainer.max_steps
    steps, parts = config.trainer.max_steps, config.trainer.accumulate
    corpus = load_corpus(config.data)
    torch.manual_seed(config.seed)
    model = LanguageModel(len(corpus.tokenizer), config.model).to(device).train()
    if config.model.compile:
        model.compile()
    optimizer = make_optimizer(model, config.optim)
    states: dict[int, ModelState] = {}
    for step in range(steps):
        if step in (0, steps // 10):
            watch = Stopwatch(device)
        set_learning_rate(optimizer, config.optim, step, step / steps)
        watch.lap("optimiser")
        for part in range(parts):
            seed_part(config.seed, step, part)
            batch = make_batch(corpus, config, step, part)
            batch = batch._replace(x=batch.x.to(device), y=batch.y.to(device))
            watch.lap("data")
            with measure.precision(device, dtype):
                loss = training_loss(model, batch, states, config) / parts
            watch.lap("forward")
            loss.backward()
            watch.lap("backward")
        clip_gradients(optimizer, config.optim.clip)
        watch.lap("clipping")
        optimizer.step()
        optimizer.zero_grad()
        watch.lap("optimiser")
    return {part: seconds / (steps - steps // 10) for part, seconds in watch.seconds.items()}, model


def whole_command(steps: int, words: list[str]) -> tuple[float, LanguageModel, dict[str, Any]]:
    """Train by `char-lm train`. Returns the seconds per step, the model, and the summary of the run."""
    with tempfile.TemporaryDirectory() as folder:
        run = trainings.train_here(Path(folder), "a", steps, words)
        model, _ = load(run / "checkpoints" / "last.ckpt")
        return trainings.seconds_per_step(run), model, Run(run).summary()


def run(arguments: options.Step) -> Row:
    """The parts of a step, or the comparison with another commit."""
    if arguments.against:
        return against.run(arguments)
    config = trainings.config_of(arguments.train, arguments.steps)
    times, about = defaultdict[str, list[float]](list), Row()
    for _ in range(arguments.repeat):
        whole, trained, summary = whole_command(arguments.steps, arguments.train)
        if not about:
            device, dtype = torch.device(summary["device"]), TYPES[summary["precision"]]
            limits, about = Limits(arguments.gemm, dtype, device), heading(config, trained, device, dtype, arguments)
        parts, model = train_in_parts(config, device, dtype)
        if device.type == "cpu":
            require_same(model, trained)
        parts = {**parts, "rest": whole - sum(parts.values()), WHOLE: whole}
        for name, seconds in parts.items():
            times[name].append(seconds)
        for name, several in measure.in_turns(limits.calls, 1, device).items():
            times[name] += several
    rows = [row_of(name, times, operations(name, config, model), limits) for name in parts]
    print(f"\n{limits.describe(times)}")
    measure.print_table(HEADER, rows, table_row)
    return {"conditions": about, "results": rows, "sgemm": times["sgemm"], **limits.columns(times)}


def heading(
    config: Config, model: LanguageModel, device: torch.device, dtype: torch.dtype, arguments: options.Step
) -> Row:
    """Print what is trained and where. Returns what the numbers depend on."""
    size = f"{config.mixer_name}, {config.model.layers} x {config.model.width}, {model.parameters_total:,} parameters"
    batch = f"{config.data.batch_size} x {config.data.context} characters"
    place = options.OnDevice(device="cuda" if device.type == "cuda" else "cpu")
    about = measure.heading(f"One step of char-lm train: {size}, {batch}", place, str(dtype).removeprefix("torch."))
    return about | {"options": dict(sorted(vars(arguments).items()))}


def operations(name: str, config: Config, model: LanguageModel) -> float | None:
    """Floating-point operations of a part of one step; None where they are not counted."""
    if name not in OPERATIONS:
        return None
    return OPERATIONS[name] * model.parameters_total * config.data.batch_size * config.data.context


def row_of(name: str, times: dict[str, list[float]], flops: float | None, limits: Limits) -> Row:
    """The row of a part, with its share of the whole step and of the limits."""
    seconds = measure.median(times[name])
    row = {"name": name, "times": times[name], "share": seconds / measure.median(times[WHOLE])}
    if flops is None:
        return row | dict.fromkeys(("flops_per_second", "of_sgemm", "of_peak"))
    return row | {"flops_per_second": flops / seconds, **limits.shares(flops / seconds, times)}


def table_row(row: Row) -> tuple[str, ...]:
    """The cells of a part's row."""
    rate = None if row["flops_per_second"] is None else row["flops_per_second"] / 1e9
    shares = (number(row[key], ".0%") for key in ("of_sgemm", "of_peak"))
    return measure.spread(row["times"]), number(row["share"], ".1%"), number(rate, ",.1f"), *shares
