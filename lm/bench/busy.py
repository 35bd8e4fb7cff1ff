"""One cell, forward + backward, alone and while another process keeps one core busy.

A kernel with one parallel region whose threads take small pieces from a queue loses what the other takes; a chain of
many small parallel regions waits, at the end of each, for the thread that has lost its core.
"""

import contextlib
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace

from lm.bench import cell, measure, peers
from lm.bench.measure import RefusedError, Row

HEADER = ("", "alone ms", "one core busy ms", "times as long")


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """Another process that computes all the time, on whichever core it gets."""
    other = subprocess.Popen(measure.program("-c", "while True: pass"))
    try:
        yield
    finally:
        other.kill()
        other.wait()


def run(arguments: SimpleNamespace) -> Row:
    """All contenders, for each cell and size."""
    about = measure.heading("One cell, forward + backward, beside a process that keeps a core busy", arguments)
    results = []
    for size in measure.sizes(arguments.sizes, "BTD"):
        for kind in measure.names(arguments.cells, peers.CELLS, "--cells"):
            rows = compare(kind, size, arguments)
            B, T, D = size
            print(f"\n{kind}, B={B} T={T:,} D={D}")
            measure.print_table(HEADER, [table_row(row) for row in rows])
            results.append({"cell": kind, "size": size, "rows": rows})
    return {"conditions": about, "results": results}


def compare(kind: str, size: tuple[int, ...], arguments: SimpleNamespace) -> list[Row]:
    """One row per contender: first all of them alone, then all of them disturbed."""
    device, dtype = measure.device_and_type(arguments)
    projection, grad_h = cell.inputs(kind, size, device, dtype)
    full = projection, grad_h, cell.truth(projection, grad_h)[1]
    rows: list[Row] = []
    calls: dict[str, measure.Call] = {}
    for name in peers.contenders(kind, device):
        try:
            contender, row = cell.prepare(name, kind, size, arguments, full)
            calls[name] = contender.train
        except (RefusedError, RuntimeError, NotImplementedError) as error:
            row = measure.skip(name, error)
        rows.append(row)
    alone = measure.in_turns(calls, arguments.repeat, device)
    with busy_core():
        busy = measure.in_turns(calls, arguments.repeat, device, starved=True)
    for row in rows:
        if (name := row["name"]) in calls:
            ratio = measure.median(busy[name]) / measure.median(alone[name])
            row |= {"alone": alone[name], "busy": busy[name], "ratio": ratio}
    return rows


def table_row(row: Row) -> tuple[str, ...]:
    """A row as the table shows it."""
    if "skipped" in row:
        return row["name"], row["skipped"]
    return row["name"], measure.spread(row["alone"]), measure.spread(row["busy"]), f"{row['ratio']:.2f}"
