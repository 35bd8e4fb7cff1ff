"""The loss curves as a PNG, for a README or a paper: against steps and against training time, side by side."""

from lm.compare.table import Group
from lm.report.plot import Curve, Panel, save

AXES = {"step": "optimiser steps", "train_seconds": "seconds of training"}
TITLES = {
    "val/loss": "validation loss, nats per character",
    "val/loss_streaming": "streaming validation loss, nats per character",
}
MOST = 24
"""Groups in one picture; more could not be told apart."""


def save_png(path: str, groups: list[Group], timed: list[Group], metric: str, target: float | None) -> None:
    """Draw two panels: one line per group, a band from its lowest to its highest run, the target dotted.

    Args:
        groups: of the panel against steps.
        timed: of the panel against seconds. A schedule follows its budget, so a fair comparison by time needs runs that
            ended after the same time.

    Raises:
        UserError: the file cannot be written.
    """
    panels = []
    for (axis, label), side in zip(AXES.items(), (groups, timed), strict=True):
        shown = [item for item in side if item.has(metric)]
        curves: dict[str, list[Curve]] = {
            item.name: [run.points(metric, axis) for run in item.runs] for item in shown[:MOST]
        }
        panels.append(Panel(label, TITLES[metric], curves))
    title = f"{MOST} of {len(shown)} groups" if len(shown) > MOST else "" if shown else f"no {metric} yet"
    save(path, panels, title, target=target)
