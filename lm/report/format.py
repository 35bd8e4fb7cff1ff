"""Numbers and tables as plain text. Imports nothing heavy."""

import math
from collections.abc import Sequence
from typing import Any

UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
"""Units of large numbers, on the page too."""

HIDDEN = dict.fromkeys({*range(32), *range(127, 160)} - set(map(ord, "\t\n")), "\ufffd")
"""A table for `str.translate` without the control characters, which could be commands to a terminal."""


def short(value: float) -> str:
    """A number in three significant digits or more: 1.57, 48.6, 3,250, 12.3M; a dash for what is not finite."""
    if not math.isfinite(value):
        return "-"
    if abs(value) < 1e5 and (abs(value) >= 100 or value == int(value)):
        return f"{value:,.0f}"
    rounded = float(f"{value:.3g}")  # its unit is that of the rounded number: 999,600 is 1M, not 1000k
    if not 1e5 <= abs(rounded) < 1e18:
        return f"{value:.3g}"
    size, unit = next((size, unit) for size, unit in UNITS if abs(rounded) >= size)
    return f"{value / size:.3g}{unit}"


def loss(value: float) -> str:
    """Four decimals, in whatever unit; a dash for what is not finite."""
    return f"{value:.4f}" if math.isfinite(value) else "-"


def number(value: float | None, form: str = ".2f") -> str:
    """A number in a format of Python's; a dash for None."""
    return "-" if value is None else f"{value:{form}}"


def align(rows: Sequence[Sequence[str]], left: int = 2, rule: bool = True) -> list[str]:
    """The lines of a table.

    Args:
        rows: the cells; the first row is the head. A row shorter than it is a name and a remark.
        left: number of columns that are aligned to the left, before those that are aligned to the right.
        rule: draw a line under the head.
    """
    whole = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    widths[0] = max(len(row[0]) for row in rows)
    lines = []
    for row in rows:
        right = left if len(row) == len(rows[0]) else len(row)
        cells = [f"{c:{'<' if i < right else '>'}{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=False))]
        lines.append("  ".join(cells).rstrip())
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]] if rule else lines


def finite(value: Any) -> Any:
    """The same with null for what JSON has no number for: infinities and NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
