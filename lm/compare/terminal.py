"""The comparison as plain text: the tables, and loss curves drawn with characters."""

import itertools
import math

from lm.compare.table import Arrival, Group, headline, measures
from lm.report.format import align, short

WAYS = {"steps": "step", "characters": "chars", "seconds": "train_seconds"}
MARKS = "ox+*#@%&ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def results(groups: list[Group]) -> list[str]:
    """The table of results, lowest loss first, without the columns in which no group has a number."""
    known = measures(run for item in groups for run in item.runs)
    stats = [(item, {key: item.stat(key) for key in known}) for item in groups]
    stats.sort(key=lambda row: (math.isnan(row[1]["val/loss"].mean), row[1]["val/loss"].mean))
    shown = {key: m for key, m in known.items() if any(math.isfinite(row[key].mean) for _, row in stats)}
    rows = [["run", "mixer", *(measure.heading for measure in shown.values()), "status"]]
    for item, row in stats:
        cells = [row[key].text(measure.form, measure.spread) for key, measure in shown.items()]
        rows.append([item.name, item.runs[0].mixer, *cells, item.status])
    return align(rows)


def to_target(found: list[Arrival], metric: str, target: float, comparable: bool = True) -> list[str]:
    """The table of time to target, where `2.5x` is how many times sooner than the slowest, and its sentence."""
    rows = [["run", "", *(word for way in WAYS for word in (way, ""))]]
    for arrival in found:
        count = len(arrival.group.runs)
        note = f"{arrival.reached} of {count} reached it" if arrival.reached else "not reached"
        rows.append([arrival.group.name, "" if arrival.reached == count else note])
        for axis in WAYS.values():
            times = arrival.faster[axis]
            rows[-1] += [arrival.at[axis].text(short), f"{times:.2f}x" if math.isfinite(times) else ""]
    head = f"First validation at or below {metric} {target:g}, and how many times sooner than the slowest:"
    sentence = headline(found, target) if comparable else ""
    return [head, "", *align(rows), *(["", sentence] if sentence else [])]


def curves(groups: list[Group], metric: str, axis: str, width: int = 78, height: int = 20) -> list[str]:
    """Loss curves: one mark per group, for all of its runs; where curves cross, the later one is drawn."""
    shown = [(mark, item) for mark, item in zip(MARKS, groups, strict=False) if item.has(metric)]
    lines = [(mark, run.points(metric, axis)) for mark, item in shown for run in item.runs]
    lines = [(mark, points) for mark, points in lines if points]
    if not lines:
        return [f"no {metric} yet"]
    losses = [y for _, points in lines for _, y in points]
    low, high = min(losses), max(losses)
    right = max(1e-9, *(x for _, points in lines for x, _ in points))
    grid = [[" "] * width for _ in range(height)]
    for mark, points in lines:
        for x, y in _dense(points, right / width):
            row = round((high - y) / ((high - low) or 1.0) * (height - 1))
            grid[row][min(width - 1, max(0, round(x / right * (width - 1))))] = mark
    drawn = [
        f"{high + (low - high) * row / (height - 1):8.4f} |{''.join(cells).rstrip()}" for row, cells in enumerate(grid)
    ]
    foot = [" " * 9 + "+" + "-" * width, " " * 10 + "0" + f"{axis} {short(right)}".rjust(width - 1)]
    left_out = len(groups) - len(shown)
    legend = [f"  {mark} {item.name}" for mark, item in shown] + ([f"  ({left_out} more)"] if left_out else [])
    return [metric, *drawn, *foot, *legend]


def _dense(points: list[tuple[float, float]], width: float) -> list[tuple[float, float]]:
    """The points of a curve and points on the lines between them, at least one per column of the terminal."""
    result = points[:1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        parts = min(200, max(1, math.ceil((x1 - x0) / width)))
        result += [(x0 + (x1 - x0) * i / parts, y0 + (y1 - y0) * i / parts) for i in range(1, parts + 1)]
    return result
