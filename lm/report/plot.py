"""Pictures as PNG files: panels side by side, each with one or more curves per name."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lm.files import atomic_open
from lm.report import style
from lm.report.format import short

Curve = Sequence[tuple[Any, float]]
INK, SOFT, TICK, FAINT = "#1f2328", "#57606a", "#8b949e", "#d9dee3"
SETTINGS: dict[Any, Any] = {"font.size": 10, "axes.edgecolor": TICK, "text.color": INK, "axes.labelcolor": INK}


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        x, y: labels of the axes.
        curves: the points of each curve by name; several curves of a name are repetitions, such as seeds.
        title: above the panel.
        log, ticks, limits: a logarithmic x-axis, its ticks, and limits of the y-axis, of a panel with points.
    """

    x: str
    y: str
    curves: dict[str, list[Curve]]
    title: str = ""
    log: bool = False
    ticks: Sequence[float] = ()
    limits: tuple[float, float] | None = None


def save(
    path: str,
    panels: list[Panel],
    title: str = "",
    scales: tuple[str, str] = ("linear", "linear"),
    target: float | None = None,
    below: Sequence[Panel] = (),
) -> None:
    """Draw panels into a PNG file. A name looks the same in all of them; equal y labels share their axis.

    Args:
        title: above all panels.
        scales: of the x and the y axis, "linear" or "log".
        target: y value of a dotted line.
        below: panels with points, in more rows. Their x may be words; a second curve of a name has open marks.

    Raises:
        UserError: the file cannot be written.
    """
    names = list(dict.fromkeys(name for panel in (*panels, *below) for name in panel.curves))
    shared = len({panel.y for panel in panels}) == 1
    rows = 1 + -(-len(below) // len(panels))
    with picture(path, 5.5 * max(len(panels), 1.5), 4.7 + 3.2 * (rows - 1)) as figure:
        grid = figure.subplots(rows, len(panels), squeeze=False, sharey="row" if shared else False)
        axes = grid[0]
        for number, (ax, panel) in enumerate(zip(axes, panels, strict=True)):
            for name, curves in panel.curves.items():
                _draw(ax, [curve for curve in curves if curve], name, names.index(name))
            ax.set(xlabel=panel.x, ylabel="" if shared and number else panel.y, title=panel.title)
            ax.set(xscale=scales[0], yscale=scales[1])
            _format(ax)
            if target is not None:
                ax.axhline(target, color=SOFT, linewidth=1, linestyle=(0, (1, 2)))
        for ax, points in zip_longest(grid[1:].flat, below):
            _draw_points(ax, points, names)
        if target is not None:
            at = axes[0].get_yaxis_transform()
            axes[0].text(0.012, target, f"target {target:g}", transform=at, va="bottom", fontsize=8.5, color=SOFT)
        legend = dict(pair for ax in grid.flat for pair in zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        _legend(figure, legend)
        figure.suptitle(title, fontsize=10)


def _legend(figure: Any, lines: dict[str, Any]) -> None:
    """A legend below all panels, in as few rows as fit."""
    for columns in range(len(lines), 0, -1):
        legend = figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=columns, frameon=False)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


@contextmanager
def picture(path: str, width: float, height: float, dpi: int = 160) -> Iterator[Any]:
    """A matplotlib figure of so many inches to draw into, which is written as a PNG file at the end.

    Raises:
        UserError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        with atomic_open(Path(path)) as file:
            figure.savefig(file, dpi=dpi, facecolor="white", format="png")


def _draw_points(ax: Any, panel: Panel | None, names: list[str]) -> None:
    """A mark for each point; no axes without a panel."""
    from matplotlib.ticker import LogLocator, NullLocator

    if panel is None:
        ax.set_visible(False)
        return
    for name, curves in panel.curves.items():
        look = _look(name, names.index(name))
        colour = look["color"]
        for curve, face, label in zip(curves, (colour, "none"), (look["label"], "_"), strict=False):
            if curve:
                marks = {"marker": look["marker"], "facecolors": face, "edgecolors": colour, "label": label}
                ax.scatter(*zip(*curve, strict=True), s=22, linewidths=0.8, alpha=0.85, **marks)
    ax.set(xlabel=panel.x, ylabel=panel.y, ylim=panel.limits)
    if panel.log:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    if panel.ticks:
        ax.set_xticks(panel.ticks)
    _style(ax)


def _look(name: str, index: int) -> dict[str, Any]:
    """How the curve of a name is drawn."""
    dash = style.DASHES[index % len(style.DASHES)]
    return {
        "color": style.LIGHT[index % len(style.LIGHT)],
        "linestyle": (0, dash) if dash else "-",
        "linewidth": 1.8,
        "marker": list(style.SYMBOLS.values())[index % len(style.SYMBOLS)],
        "markersize": 4.5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
        "label": name.replace("$", r"\$").lstrip("_") or "?",  # no formulas, and none of matplotlib's hidden labels
    }


def _draw(ax: Any, curves: list[Curve], name: str, index: int) -> None:
    """A curve; of several their mean and band, and each of them as a thin line."""
    look = _look(name, index)
    if len(curves) > 1 and (shared := band(curves)):
        xs, low, mean, high = zip(*shared, strict=True)
        ax.fill_between(xs, low, high, color=look["color"], alpha=0.18, linewidth=0)
        for curve in curves:
            ax.plot(*zip(*curve, strict=True), color=look["color"], alpha=0.4, linewidth=0.7)
        curves = [list(zip(xs, mean, strict=True))]
    for curve in curves:
        ax.plot(*zip(*curve, strict=True), markevery=max(1, len(curve) // 12), **look)
        look["label"] = "_"


def band(curves: list[Curve]) -> list[tuple[float, float, float, float]]:
    """(x, lowest, mean, highest) of several curves at each x of any of them, where all of them have values."""
    import numpy as np

    start, end = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    grid = np.unique([x for curve in curves for x, _ in curve if start <= x <= end])
    values = np.stack([np.interp(grid, *np.array(curve).T) for curve in curves])
    parts = (grid, values.min(0), values.mean(0), values.max(0))
    return list(zip(*(part.tolist() for part in parts), strict=True))


def _format(ax: Any) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    if ax.get_xscale() == "log":
        ax.xaxis.set_major_locator(LogLocator(base=4, numticks=12))
        ax.xaxis.set_minor_locator(NullLocator())
    else:
        ax.set_xlim(left=0)
    ax.xaxis.set_major_formatter(lambda x, _: tick(x))
    _style(ax)


def tick(x: float) -> str:
    """A number on an axis."""
    return short(x) if x >= 1e6 else f"{x:,.0f}" if x >= 10 or x == int(x) else f"{x:g}"


def _style(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color=FAINT, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(color=TICK, labelcolor=INK)
