"""One cell, forward + backward, alone and while another process keeps one core busy.

A kernel with one parallel region whose threads take small pieces from a queue loses what the other process takes; a
chain of many small parallel regions waits, at the end of each, for the thread that has lost its core.
"""

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Iterator

from lm.bench import cell, measure, options
from lm.bench.measure import Row

HEADER = ("", "alone ms", "one core busy ms", "times as long")


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """Another process that computes all the time, on whichever core it gets."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
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
    return {"conditions": about, "results": results}


def compare(kind: str, size: tuple[int, ...], arguments: options.Busy) -> list[Row]:
    """One row per contender: first all of them alone, then all of them disturbed."""
    device, _ = measure.device_and_type(arguments)
    cells, rows = cell.prepare(kind, size, arguments)
    calls = {name: contender.train for name, contender in cells.items()}
    alone = measure.in_turns(calls, arguments.repeat, device)
    with busy_core():
        busy = measure.in_turns(calls, arguments.repeat, device, starved=True)
    for row in rows:
        if (name := row["name"]) in calls:
            ratio = measure.median(busy[name]) / measure.median(alone[name])
            row |= {"alone": alone[name], "busy": busy[name], "ratio": ratio}
    return rows


def table_row(row: Row) -> tuple[str, ...]:
    """The cells of a contender's row."""
    return measure.spread(row["alone"]), measure.spread(row["busy"]), f"{row['ratio']:.2f}"
