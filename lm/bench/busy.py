"""One cell, forward + backward, alone and while another process keeps one core busy; and whole trainings.

A kernel with one parallel region whose threads take small pieces from a queue loses what the other process takes; a
chain of many small parallel regions waits, at the end of each, for the thread that has lost its core. How it waits
decides what that costs: see `lm.cli.share_cores`.
"""

import contextlib
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lm.bench import cell, measure, options, trainings
from lm.bench.measure import Row

HEADER = ("", "alone ms", "one core busy ms", "times as long")
OTHERS = {"alone": 0, "beside one process": 1, "beside two": 2}
WAITS = {"ours": {}, "GOMP_SPINCOUNT=300000": {"GOMP_SPINCOUNT": "300000"}}
"""How threads wait for each other: as the command line sets it, and as GCC's OpenMP does by itself."""


@contextlib.contextmanager
def busy_cores(count: int = 1) -> Iterator[None]:
    """Other processes that compute all the time, on whichever cores they get."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def run(arguments: options.Busy) -> Row:
    """All contenders, for each cell and size."""
    about = measure.heading("One cell, forward + backward, beside a process that keeps a core busy", arguments)
    results = []
    for size, kind in itertools.product(measure.sizes(arguments.sizes, "BTD"), arguments.cells):
        rows = compare(kind, size, arguments)
        B, T, D = size
        print(f"\n{kind}, B={B} T={T:,} D={D}")
        measure.print_table(HEADER, rows, table_row)
        results.append({"cell": kind, "size": size, "rows": rows})
    trained = train(arguments.steps, arguments.repeat) if arguments.steps else []
    if trained:
        print(f"\nchar-lm train, {arguments.steps} steps, characters/s")
        measure.print_table(("threads wait", *OTHERS), trained, lambda row: [measure.whole(row[key]) for key in OTHERS])
    return {"conditions": about, "results": results, "trainings": trained}


def train(steps: int, repeat: int) -> list[Row]:
    """Characters per second of trainings in a process of their own: one row for each of WAITS, taken in turns."""
    rows: list[Row] = [{"name": name, **{key: [] for key in OTHERS}} for name in WAITS]
    with tempfile.TemporaryDirectory() as folder:
        for turn, (key, count), row in itertools.product(range(repeat), OTHERS.items(), rows):
            name = f"{rows.index(row)}-{count}-{turn}"
            words = trainings.words_for(Path(folder), name, steps)
            words += "--trainer.accelerator cpu --eval.chars 1000 --eval.sample_chars 0 --log.wandb disabled".split()
            with busy_cores(count):
                trainings.train_at(trainings.TREE, words, **WAITS[row["name"]])
            row[key].append(trainings.CHARACTERS / trainings.seconds_per_step(Path(folder, name)))
    return rows


def compare(kind: str, size: tuple[int, ...], arguments: options.Busy) -> list[Row]:
    """One row per contender: first all of them alone, then all of them disturbed."""
    device, _ = measure.device_and_type(arguments)
    cells, rows = cell.prepare(kind, size, arguments)
    calls = {name: contender.train for name, contender in cells.items()}
    alone = measure.in_turns(calls, arguments.repeat, device)
    with busy_cores():
        busy = measure.in_turns(calls, arguments.repeat, device, starved=True)
    for row in rows:
        if (name := row["name"]) in calls:
            ratio = measure.median(busy[name]) / measure.median(alone[name])
            row |= {"alone": alone[name], "busy": busy[name], "ratio": ratio}
    return rows


def table_row(row: Row) -> tuple[str, ...]:
    """The cells of a contender's row."""
    return measure.spread(row["alone"]), measure.spread(row["busy"]), f"{row['ratio']:.2f}"
