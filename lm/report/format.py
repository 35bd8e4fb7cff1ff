"""Numbers and tables as plain text: the one place that formats them. Imports nothing heavy."""

import math
from typing import Any


def short(value: float) -> str:
    """A number in four significant digits or so: 1.568, 48.6, 3,250, 12.3M."""
    if not math.isfinite(value):
        return "-"
    if abs(value) >= 1e15:
        return f"{value:.3g}"
    for least, size, unit in ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e5, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / size:.3g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def loss(value: float) -> str:
    """Four decimals, in whatever unit; a dash for what is not finite."""
    return f"{value:.4f}" if math.isfinite(value) else "-"


def align(rows: list[list[str]]) -> list[str]:
    """Rows as lines: the first two columns to the left, numbers to the right, a rule under the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def finite(value: Any) -> Any:
    """The same with null for what JSON has no number for: infinities and NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
