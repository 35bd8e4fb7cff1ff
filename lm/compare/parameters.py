"""Options that differ between the runs of one mixer, to draw the loss against them: what a search has tried."""

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from lm.compare import table
from lm.compare.runs import RunData

MOST = 12
"""Options that are drawn."""
FEW = 6
"""Different numbers that are written on an axis."""


@dataclass(frozen=True)
class Parameter:
    """An option, and its value in each run: numbers, or words if any of them is none."""

    key: str
    values: list[float] | list[str]
    log: bool
    """whether the numbers are spread more evenly over a logarithmic axis"""
    ticks: list[float]
    """the numbers, if there are few"""


def parameters(runs: list[RunData]) -> list[Parameter]:
    """The options that differ between runs of one mixer, apart from the seed."""
    return list(_find(runs))[:MOST]


def _find(runs: list[RunData]) -> Iterator[Parameter]:
    mixers = [run.mixer for run in runs]
    for key, words in table.differences(runs).items():
        tried = set(zip(mixers, words, strict=True))
        if key != "seed" and len(tried) > len(set(mixers)):
            numbers = [_number(word) for word in words]
            whole = all(map(math.isfinite, numbers))
            ticks = sorted(set(numbers)) if whole else []
            log = whole and _is_logarithmic(numbers)
            yield Parameter(key, numbers if whole else words, log, ticks if len(ticks) <= FEW else [])


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan


def _is_logarithmic(values: list[float]) -> bool:
    """Whether the median is nearer to the middle of the range in the logarithm."""
    if not 0 < min(values) < max(values):
        return False
    logs = [math.log(value) for value in values]
    return _off_centre(logs) < _off_centre(values)


def _off_centre(values: list[float]) -> float:
    low, high = min(values), max(values)
    return abs((statistics.median(values) - low) / (high - low) - 0.5)
