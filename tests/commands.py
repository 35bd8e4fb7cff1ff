"""The commands of `char-lm`, run in this process: each is a function of its words that returns the exit code."""

from collections.abc import Callable
from pathlib import Path

from lm import cli

ROOT = Path(__file__).parents[1]
"""The checkout."""


def _command(name: str) -> Callable[[list[str]], int]:
    return lambda words: cli.main([name, *words])


train, generate, compare, sweep, evaluate, inspect, data, export, bench, reproduction, document = map(
    _command,
    "train generate compare sweep evaluate inspect data export bench reproduction document".split(),
)
