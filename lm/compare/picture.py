"""The curves as a PNG, for a README or a paper: loss against steps and against training time, side by side."""

from pathlib import Path
from typing import Any

from lm.compare.table import Group
from lm.compare.terminal import name
from lm.report import style

INK, SOFT, TICK, FAINT = "#1f2328", "#57606a", "#8b949e", "#d9dee3"
PANELS = (("step", "optimiser steps"), ("train_seconds", "seconds of training"))
TITLES = {
    "val/loss": "validation loss, nats per character",
    "val/loss_streaming": "streaming validation loss, nats per character",
}
MOST = 24
"""Groups that a picture can tell apart; the picture says how many there are beyond these."""


def save_png(path: Path, groups: list[Group], metric: str, target: float | None) -> None:
    """Draw two panels: a line a group, a band from its lowest to its highest run, the target dotted.

    Raises:
        OSError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    shown = [item for item in groups if any(run.points(metric)[1] for run in item.runs)]
    with matplotlib.rc_context({"font.size": 10, "axes.edgecolor": TICK, "text.color": INK, "axes.labelcolor": INK}):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for panel, (axis, label) in zip(panels, PANELS, strict=True):
            for index, item in enumerate(shown[:MOST]):
                _draw(panel, item, index, metric, axis)
            _dress(panel, label, target)
        panels[0].set_ylabel(TITLES[metric])
        _annotate(figure, panels[0], len(shown), metric, target)
        figure.savefig(path, dpi=160, facecolor="white", format="png")


def _annotate(figure: Any, panel: Any, count: int, metric: str, target: float | None) -> None:
    """Legend, target, and what is not there."""
    handles, labels = panel.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(handles), 6), frameon=False)
    else:
        panel.text(0.5, 0.5, f"no {metric} yet", transform=panel.transAxes, ha="center")
    if count > MOST:
        figure.suptitle(f"{MOST} of {count} groups", fontsize=9, color=SOFT, x=0.99, ha="right")
    if target is not None:
        at = panel.get_yaxis_transform()
        panel.text(0.012, target, f"target {target:g}", transform=at, va="bottom", fontsize=8.5, color=SOFT)


def _draw(panel: Any, item: Group, index: int, metric: str, axis: str) -> None:
    """A curve; for several seeds their mean and band, and each of them thin."""
    curves = [run.points(metric, axis) for run in item.runs]
    curves = [(xs, ys) for xs, ys in curves if ys]
    colour, dash = style.LIGHT[index % len(style.LIGHT)], style.PATTERNS[style.DASHES[index % len(style.DASHES)]]
    look = {
        "color": colour,
        "linestyle": (0, dash) if dash else "-",
        "linewidth": 1.8,
        "marker": list(style.SYMBOLS.values())[index % len(style.SYMBOLS)],
        "markersize": 4.5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
        "label": name(item).replace("$", r"\$").lstrip("_") or "?",  # neither formulas nor matplotlib's hidden labels
    }
    if len(curves) > 1:
        xs, low, mean, high = band(curves)
        if xs:
            panel.fill_between(xs, low, high, color=colour, alpha=0.18, linewidth=0)
            for curve in curves:
                panel.plot(*curve, color=colour, alpha=0.4, linewidth=0.7)
            curves = [(xs, mean)]
    for number, (xs, ys) in enumerate(curves):
        look["label"] = look["label"] if number == 0 else "_"
        panel.plot(xs, ys, markevery=max(1, len(xs) // 12), **look)


def band(curves: list[tuple[list[float], list[float]]]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Lowest, mean and highest of several curves where all of them have values, on the union of their points."""
    import numpy as np

    start, end = max(xs[0] for xs, _ in curves), min(xs[-1] for xs, _ in curves)
    grid = np.unique([x for xs, _ in curves for x in xs if start <= x <= end])
    if not len(grid):
        return [], [], [], []
    values = np.stack([np.interp(grid, xs, ys) for xs, ys in curves])
    return grid.tolist(), values.min(0).tolist(), values.mean(0).tolist(), values.max(0).tolist()


def _dress(panel: Any, label: str, target: float | None) -> None:
    panel.set_xlabel(label)
    panel.set_xlim(left=0)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color=FAINT, linewidth=0.7)
    panel.set_axisbelow(True)
    panel.tick_params(color=TICK, labelcolor=INK)
    panel.xaxis.set_major_formatter(
        lambda value, _: f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:g}"
    )
    if target is not None:
        panel.axhline(target, color=SOFT, linewidth=1, linestyle=(0, (1, 2)))
