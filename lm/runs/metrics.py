"""metrics.csv: its columns, its one writer and its one reader."""

import csv
import io
from collections.abc import Mapping

AXES = ("step", "chars", "train_seconds", "flops")
"""What every row of metrics.csv has: any of them can be the x-axis."""


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


APPENDED = {"metrics.csv": ",".join(AXES + VALUES) + "\n", "samples.jsonl": ""}
"""The files that grow, and what each starts with."""


def _csv_row(cells: Mapping[str, object]) -> str:
    line = io.StringIO()
    csv.DictWriter(line, AXES + VALUES, restval="", lineterminator="\n").writerow(cells)
    return line.getvalue()
