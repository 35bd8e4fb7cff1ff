"""One self-contained HTML page: the data, plotly and our own script in one file that asks the network for nothing.

Names, samples and options come from run folders and are not trusted: they travel as JSON in which nothing can close
the element, the script puts them on the page as text, and a content security policy admits no script but ours.
"""

import base64
import hashlib
import json
import math
import sys
from array import array
from collections.abc import Sequence
from importlib import resources
from typing import Any

from lm.compare.runs import HUGE, NAN, Columns, RunData, Sample
from lm.compare.table import MEASURES, Group, differences
from lm.report import style
from lm.runs.metrics import AXES, VALUES

VALIDATION = tuple(name for name in VALUES if name.startswith("val/"))
TRAINING = tuple(name for name in VALUES if not name.startswith("val/"))
SCRIPTS = ("series.js", "state.js", "tables.js", "plots.js", "page.js")
"""In the order in which they run, after plotly."""
ROWS = 150_000
"""Training rows that a page holds; beyond, neighbouring rows of each run are averaged."""
SAMPLE_CHARS = 4_000_000
"""Characters of samples that a page holds; beyond, each run keeps some of its samples, first and last among them."""


def render(data: dict[str, Any]) -> str:
    """The page that shows what `payload` made."""
    from plotly.offline import get_plotlyjs

    files = resources.files("lm.compare")
    scripts = [get_plotlyjs(), *((files / name).read_text(encoding="utf-8") for name in SCRIPTS)]
    parts = {
        "POLICY": _policy(scripts, live=data["live"]),
        "STYLE": (files / "page.css").read_text(encoding="utf-8"),
        "DATA": embed(data),
        "SCRIPTS": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    page = (files / "page.html").read_text(encoding="utf-8")
    head, *rest = page.split("<!--")  # one pass: what is put in is not searched again
    for part in rest:
        mark, _, tail = part.partition("-->")
        head += parts[mark.strip()] + tail
    return head


def _policy(scripts: list[str], live: bool) -> str:
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    connect = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def embed(data: Any) -> str:
    """JSON that is safe inside a <script> element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def payload(groups: list[Group], metric: str, target: float | None, notes: list[str]) -> dict[str, Any]:
    """Everything that the page shows, but for the runs themselves: `encode` makes those."""
    runs = [run for item in groups for run in item.runs]
    return {
        "live": False,
        "metric": metric,
        "target": target,
        "warnings": notes,
        "looks": {"light": style.LIGHT, "dark": style.DARK, "dashes": style.DASHES, "symbols": list(style.SYMBOLS)},
        "groups": [_group(item) for item in groups],
        "differences": differences(runs),
    }


def _group(item: Group) -> dict[str, Any]:
    return {
        "label": item.label,
        "runs": [str(run.path) for run in item.runs],
        "mixer": item.runs[0].mixer,
        "status": ", ".join(dict.fromkeys(run.status for run in item.runs)),
        "corpus": item.runs[0].config.get("data.corpus", ""),
        "row": {name: item.stat(get).to_json() for name, get in MEASURES.items()},
    }


def encode(run: RunData, count: int) -> dict[str, Any]:
    """A run's curves and samples, for a page of `count` runs."""
    return {
        "id": str(run.path),
        "name": run.name,
        "mixer": run.mixer,
        "status": run.status,
        "row": {name: {"mean": _finite(get(run)), "spread": None} for name, get in MEASURES.items()},
        "train": _columns(_thin(_rows(run.columns, TRAINING), max(200, ROWS // count))),
        "val": _columns(_rows(run.columns, VALIDATION)),
        "samples": [[sample.step, sample.text] for sample in _some(run.samples, SAMPLE_CHARS // count)],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rows(columns: Columns, values: Sequence[str]) -> Columns:
    """The rows in which any of these values is: training and validation write different ones."""
    rows = [
        i for i, row in enumerate(zip(*(columns[name] for name in values), strict=True)) if any(v == v for v in row)
    ]
    return {name: [columns[name][i] for i in rows] for name in (*AXES, *values)}


def _thin(columns: Columns, most: int) -> Columns:
    """At most so many rows: the values of neighbours averaged, at the place of the last."""
    size = -(-len(columns["step"]) // most)
    if size <= 1:
        return columns
    starts = range(0, len(columns["step"]), size)
    return {
        name: [values[i : i + size][-1] if name in AXES else _mean(values[i : i + size]) for i in starts]
        for name, values in columns.items()
    }


def _mean(values: list[float]) -> float:
    kept = [value for value in values if math.isfinite(value)]
    return sum(kept) / len(kept) if kept else NAN


def _columns(columns: Columns) -> dict[str, str]:
    """Numbers as little-endian float32 in base64: a third of JSON's size, quick at both ends, and NaN has a place."""
    result = {}
    for name, values in columns.items():
        numbers = array("f", [value if abs(value) < HUGE else NAN for value in values])
        if sys.byteorder == "big":
            numbers.byteswap()
        result[name] = base64.b64encode(numbers.tobytes()).decode()
    return result


def _some(samples: list[Sample], budget: int) -> list[Sample]:
    """Evenly chosen samples that fit into so many characters."""
    room = max(2, int(budget / (max((len(s.text) for s in samples), default=1) + 1)))
    if len(samples) <= room:
        return samples
    return [samples[round(i * (len(samples) - 1) / (room - 1))] for i in range(room)]
