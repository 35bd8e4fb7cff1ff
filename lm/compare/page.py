"""The page of `char-lm compare`: the data, plotly and our own scripts in one file (`lm.report.html`)."""

import base64
import os
import sys
from array import array
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lm.compare import table
from lm.compare.parameters import parameters
from lm.compare.runs import HUGE, NAN, RunData, Sample
from lm.report import style
from lm.report.format import UNITS, loss
from lm.report.html import fill, texts
from lm.runs.metrics import AXES, VALUES

VALIDATION = tuple(name for name in VALUES if name.startswith("val/"))
TRAINING = tuple(name for name in VALUES if not name.startswith("val/"))
SCRIPTS = ("series.js", "state.js", "tables.js", "plots.js", "page.js")
"""In the order in which they run, after plotly and what all pages use."""
ROWS = 100_000
"""Training rows in a page; of more, neighbouring rows of each run are averaged."""
SAMPLE_CHARS = 4_000_000
"""Characters of samples in a page; of more, each run keeps some of its samples, the first and the last included."""
INSIDE = "inside.html"
"""The file in a run folder that a page links to, if it is there."""
Rows = list[dict[str, float]]


def page(runs: list[RunData], metric: str, target: float | None, skipped: list[str], folder: Path) -> str:
    """The page of some runs, for a file in a folder; see `payload` for the other arguments."""
    data = payload(runs, metric, target, skipped)
    return render(data | {"runs": [encode(run, len(runs)) | {"inside": _inside(run, folder)} for run in runs]})


def _inside(run: RunData, folder: Path) -> str | None:
    """The address, as seen from a folder, of the run's page by `char-lm inspect`; None where it has none."""
    path = run.path / INSIDE
    return quote(Path(os.path.relpath(path, folder)).as_posix()) if path.is_file() else None


def render(data: dict[str, Any]) -> str:
    """The page that shows what `payload` and `encode` made."""
    from plotly.offline import get_plotlyjs

    template, *styles = texts("lm.compare/page.html", "lm.report/page.css", "lm.compare/page.css")
    scripts = [get_plotlyjs(), *texts("lm.report/page.js", *(f"lm.compare/{name}" for name in SCRIPTS))]
    return fill(template, "".join(styles), data, scripts, connect="'self'" if data["live"] else "'none'")


def payload(runs: list[RunData], metric: str, target: float | None, skipped: list[str]) -> dict[str, Any]:
    """All that the page shows, but for the curves and samples, which `encode` makes of each run.

    Args:
        target: the loss to reach; None for the page's own choice.
        skipped: folders without a run.
    """
    measures = sorted(table.measures(runs).items(), key=lambda item: not item[1].spread)  # sizes after results
    return {
        "live": False,
        "metric": metric,
        "target": target,
        "warnings": (notes := table.warnings(runs, skipped)),
        "comparable": table.are_comparable(notes),
        "looks": {"light": style.LIGHT, "dark": style.DARK, "dashes": style.DASHES, "symbols": list(style.SYMBOLS)},
        "units": UNITS,
        "measures": [[key, each.heading, each.form is loss, each.spread] for key, each in measures],
        "groups": [{"label": item.label, "runs": [str(run.path) for run in item.runs]} for item in table.group(runs)],
        "differences": list(table.differences(runs).items()),
        "parameters": [vars(parameter) for parameter in parameters(runs)],
        "unfinished": table.UNFINISHED,
        "corpora": list(dict.fromkeys(run.config.get("data.corpus", "") for run in runs)),
        "order": [str(run.path) for run in runs],
    }


def encode(run: RunData, count: int) -> dict[str, Any]:
    """A run's numbers, curves and samples, for a page of `count` runs."""
    return {
        "id": str(run.path),
        "name": run.name,
        **table.facts(run),
        "train": _curves(run.rows, TRAINING, max(200, ROWS // count)),
        "val": _curves(run.rows, VALIDATION),
        "samples": [[sample.step, sample.text] for sample in _some(run.samples, SAMPLE_CHARS // count)],
    }


def _curves(rows: Rows, values: tuple[str, ...], most: int = sys.maxsize) -> dict[str, str]:
    """AXES and some other columns of the rows that have any of these, packed; of more than `most` rows, averages."""
    rows = [row for row in rows if any(name in row for name in values)]
    size = max(1, -(-len(rows) // most))
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    axes = {name: _pack([part[-1].get(name, NAN) for part in parts]) for name in AXES}
    return axes | {name: _pack([_mean([row.get(name, NAN) for row in part]) for part in parts]) for name in values}


def _mean(values: list[float]) -> float:
    kept = [value for value in values if abs(value) < HUGE]
    return sum(kept) / len(kept) if kept else NAN


def _pack(values: list[float]) -> str:
    """Numbers as little-endian float32 in base64: a third of the size of JSON, and it can hold NaN."""
    numbers = array("f", [value if abs(value) < HUGE else NAN for value in values])
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


def _some(samples: list[Sample], budget: int) -> list[Sample]:
    """Samples at even distances that have at most so many characters."""
    room = max(2, int(budget / (max((len(s.text) for s in samples), default=1) + 1)))
    if len(samples) <= room:
        return samples
    return [samples[round(i * (len(samples) - 1) / (room - 1))] for i in range(room)]
