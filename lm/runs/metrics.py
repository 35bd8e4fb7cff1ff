"""metrics.csv: its columns, the one function that writes a row, and the one that reads the file."""

import math
from collections.abc import Mapping
from contextlib import suppress

AXES = ("step", "chars", "train_seconds", "flops")
"""Columns that each row has; any of them can be the x-axis of a plot."""
VALUES = (
    "train/loss",
    "val/loss",
    "val/loss_streaming",
    "val/bpc",
    "val/perplexity",
    "lr",
    "grad_norm",
    "chars_per_second",
    "val/accuracy",
)
"""Columns that only some rows have: those of a training step or those of a validation."""
LOSSES = ("train/loss", "val/loss", "val/loss_streaming")
"""In nats per character: the mean since the last row, windowed and streaming validation."""
HEADER = ",".join(AXES + VALUES) + "\n"


def format_row(row: Mapping[str, float]) -> str:
    """A line of metrics.csv: whole numbers in full, others in six digits, nothing for a column that `row` lacks."""
    cells = (row.get(name, "") for name in AXES + VALUES)
    return ",".join(f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in cells) + "\n"


def read_rows(text: str) -> tuple[list[dict[str, float]], list[str]]:
    """Read the content of metrics.csv, however damaged; what follows the last line end is still being written.

    Returns:
        The rows in the order of their steps, each without its empty cells; and what is wrong with the file, in words.
    """
    header, _, body = text.partition("\n")
    names, lines = [name.strip() for name in header.split(",")], body.split("\n")[:-1]
    rows: list[dict[str, float]] = []
    for line in lines:
        with suppress(ValueError):
            pairs = zip(names, line.split(","), strict=True)
            rows.append({name: float(cell) for name, cell in pairs if cell})
    problems = [f"{len(lines) - len(rows)} damaged rows of metrics.csv left out"] if len(rows) < len(lines) else []
    if header and (missing := [axis for axis in AXES if axis not in names]):
        problems.append("metrics.csv lacks " + ", ".join(missing))
    rows = sorted((row for row in rows if math.isfinite(row.get("step", math.nan))), key=lambda row: row["step"])
    for name in LOSSES:
        if bad := [row for row in rows if not math.isfinite(row.get(name, 0.0))]:
            problems.append(f"{name} is {bad[0][name]} at step {bad[0]['step']:g}")
    return rows, problems
