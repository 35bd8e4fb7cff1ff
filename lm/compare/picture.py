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


def save_png(path: str, groups: list[Group], metric: str, target: float | None) -> None:
    """Draw two panels: one line per group, a band from its lowest to its highest run, the target dotted.

    Raises:
        UserError: the file cannot be written.
    """
    shown = [item for item in groups if item.has(metric)]
    panels = []
    for axis, label in AXES.items():
        curves: dict[str, list[Curve]] = {
            item.name: [run.points(metric, axis) for run in item.runs] for item in shown[:MOST]
        }
        panels.append(Panel(label, TITLES[metric], curves))
    title = f"{MOST} of {len(shown)} groups" if len(shown) > MOST else "" if shown else f"no {metric} yet"
    save(path, panels, title, target=target)
