"""The loss curves as a PNG, for a README or a paper: against steps and, side by side, against training time or work."""

import math

from lm.compare.parameters import Parameter, parameters
from lm.compare.runs import RunData
from lm.compare.table import MEASURES, UNFINISHED, Group
from lm.report.plot import Curve, Panel, save

AXES = {
    "step": "optimiser steps",
    "train_seconds": "seconds of training",
    "chars": "characters of training",
    "flops": "floating-point operations of training",
}
TITLES = {
    "val/loss": "validation loss, nats per character",
    "val/loss_streaming": "streaming validation loss, nats per character",
}
MOST = 24
"""Groups in one picture; more could not be told apart."""


def save_png(
    path: str, groups: list[Group], timed: list[Group], metric: str, target: float | None, right: str = "train_seconds"
) -> None:
    """Draw two panels: one line per group, a band from its lowest to its highest run, the target dotted.

    Below them, the loss against each option that differs between the runs of a mixer.

    Args:
        groups: of the panel against steps.
        timed: of the panel on the right. A schedule follows its budget, so a fair comparison by time needs runs that
            ended after the same time.
        right: the axis of that panel.

    Raises:
        UserError: the file cannot be written.
    """
    panels = []
    for axis, side in (("step", groups), (right, timed)):
        shown = [item for item in side if item.has(metric)]
        curves: dict[str, list[Curve]] = {
            item.name: [run.points(metric, axis) for run in item.runs] for item in shown[:MOST]
        }
        panels.append(Panel(AXES[axis], TITLES[metric], curves))
    title = f"{MOST} of {len(shown)} groups" if len(shown) > MOST else "" if shown else f"no {metric} yet"
    runs = [run for item in groups for run in item.runs]
    below = [_points(parameter, runs, metric) for parameter in parameters(runs)]
    save(path, panels, title, target=target, below=below)


def _points(parameter: Parameter, runs: list[RunData], metric: str) -> Panel:
    """The best loss of each run against an option: for each mixer the runs that ended well, then the others."""
    pairs = [(run, (value, MEASURES[metric].get(run))) for run, value in zip(runs, parameter.values, strict=True)]
    well = [(run, point) for run, point in pairs if run.status not in UNFINISHED]
    rest = [(run, point) for run, point in pairs if run.status in UNFINISHED]
    mixers = dict.fromkeys(run.mixer for run in runs)
    curves: dict[str, list[Curve]] = {
        mixer: [[point for run, point in part if run.mixer == mixer] for part in (well, rest)] for mixer in mixers
    }
    low = min((y for _, (_, y) in pairs if math.isfinite(y)), default=math.nan)
    high = max((y for _, (_, y) in well if math.isfinite(y)), default=math.nan)
    margin = 0.08 * (high - low)
    limits = (low - margin, high + margin) if margin > 0 else None
    return Panel(parameter.key, f"best {metric}", curves, "", parameter.log, parameter.ticks, limits)
