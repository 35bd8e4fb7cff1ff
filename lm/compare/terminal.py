"""The comparison as plain text: the tables, and curves made of characters."""

import math

from lm.compare.table import MEASURES, Arrival, Group, Stat, headline
from lm.report.format import align, loss, short

RESULTS = {
    "params": "parameters",
    "val loss": "val/loss",
    "streaming": "val/loss_streaming",
    "accuracy": "val/accuracy",
    "bits/char": "bits_per_char",
    "at step": "best_step",
    "after s": "best_seconds",
    "chars/s": "chars_per_second",
    "MB": "memory_mb",
}
"""Headings of the results, and the measure below each."""
WAYS = {"steps": "step", "characters": "chars", "seconds": "train_seconds"}
MARKS = "ox+*#@%&ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _cell(stat: Stat, measure: str) -> str:
    form = loss if measure.startswith("val/") or measure == "bits_per_char" else short
    spread = (
        f" ±{form(stat.spread)}" if math.isfinite(stat.spread) and measure not in ("parameters", "memory_mb") else ""
    )
    return form(stat.mean) + spread


def name(group: Group) -> str:
    """A group's name, with the number of its runs."""
    return group.label + (f" x{len(group.runs)}" if len(group.runs) > 1 else "")


def results(groups: list[Group]) -> list[str]:
    """The table of runs, best first; without the columns that none of them has."""
    stats = [(item, {key: item.stat(get) for key, get in MEASURES.items()}) for item in groups]
    stats.sort(key=lambda row: (math.isnan(row[1]["val/loss"].mean), row[1]["val/loss"].mean))
    shown = {head: key for head, key in RESULTS.items() if any(math.isfinite(row[key].mean) for _, row in stats)}
    rows = [["run", "mixer", *shown, "status"]]
    for item, row in stats:
        status = ", ".join(dict.fromkeys(run.status for run in item.runs))
        rows.append([name(item), item.runs[0].mixer, *(_cell(row[key], key) for key in shown.values()), status])
    return align(rows)


def to_target(found: list[Arrival], metric: str, target: float) -> list[str]:
    """The table of time to target; `2.5x` is how many times sooner than the slowest."""
    rows = [["run", "", *(word for way in WAYS for word in (way, ""))]]
    for arrival in found:
        of = len(arrival.group.runs)
        note = (
            ""
            if arrival.reached == of
            else f"{arrival.reached} of {of} reached it"
            if arrival.reached
            else "not reached"
        )
        cells = [
            cell
            for axis in WAYS.values()
            for cell in (
                _cell(arrival.at[axis], axis),
                f"{arrival.faster[axis]:.2f}x" if math.isfinite(arrival.faster[axis]) else "",
            )
        ]
        rows.append([name(arrival.group), note, *cells])
    head = f"First validation at or below {metric} {target:g}, and how many times sooner than the slowest:"
    sentence = headline(found, target)
    return [head, "", *align(rows), *(["", sentence] if sentence else [])]


def curves(groups: list[Group], metric: str, axis: str, width: int = 78, height: int = 20) -> list[str]:
    """Loss curves for a terminal: one mark a group, all its runs drawn; where curves meet, the later one shows."""
    shown = [
        (mark, item) for mark, item in zip(MARKS, groups, strict=False) if any(r.points(metric)[1] for r in item.runs)
    ]
    points = [(mark, *run.points(metric, axis)) for mark, item in shown for run in item.runs]
    points = [(mark, xs, ys) for mark, xs, ys in points if ys]
    if not points:
        return [f"no {metric} yet"]
    low, high = min(min(ys) for _, _, ys in points), max(max(ys) for _, _, ys in points)
    right = max(1e-9, *(max(xs) for _, xs, _ in points))
    grid = [[" "] * width for _ in range(height)]
    for mark, xs, ys in points:
        for x, y in _dense(xs, ys, right / width):
            row = round((high - y) / ((high - low) or 1.0) * (height - 1))
            grid[row][min(width - 1, max(0, round(x / right * (width - 1))))] = mark
    lines = [
        f"{high + (low - high) * row / (height - 1):8.4f} |{''.join(cells).rstrip()}" for row, cells in enumerate(grid)
    ]
    foot = [" " * 9 + "+" + "-" * width, " " * 10 + "0" + f"{axis} {short(right)}".rjust(width - 1)]
    left_out = len(groups) - len(shown)
    legend = [f"  {mark} {name(item)}" for mark, item in shown] + ([f"  ({left_out} more)"] if left_out else [])
    return [metric, *lines, *foot, *legend]


def _dense(xs: list[float], ys: list[float], width: float) -> list[tuple[float, float]]:
    """The points of a curve with the line between them filled in, a point a column."""
    result = [(xs[0], ys[0])]
    for x0, y0, x1, y1 in zip(xs, ys, xs[1:], ys[1:], strict=False):
        parts = min(200, max(1, math.ceil((x1 - x0) / width)))
        result += [(x0 + (x1 - x0) * i / parts, y0 + (y1 - y0) * i / parts) for i in range(1, parts + 1)]
    return result
