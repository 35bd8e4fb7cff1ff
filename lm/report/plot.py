"""A picture of a benchmark: panels of log-log curves, one per contender."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.report import style

Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One set of axes; `curves` maps a contender to its points (x, y)."""

    title: str
    label: str
    curves: dict[str, Curve]


def save(path: str, panels: list[Panel], axis: str, title: str, logarithmic: bool = True) -> None:
    """Draw the panels side by side into a PNG, y `logarithmic` or not. A contender looks the same in all of them."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    figure = Figure(figsize=(5.2 * len(panels), 4.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, ax in zip(panels, axes, strict=True):
        for name, curve in panel.curves.items():
            if curve:
                ax.plot(*zip(*curve, strict=True), label=name, **_look(names.index(name)))
        ax.set(
            xscale="log", yscale="log" if logarithmic else "linear", xlabel=axis, ylabel=panel.label, title=panel.title
        )
        ax.xaxis.set_major_locator(_powers_of_two())
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        ax.xaxis.set_minor_locator(_none())
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    found = dict(pair for ax in axes for pair in zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    if found:
        columns = 3 * len(panels) - 2
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(Path(path), dpi=150, facecolor="white", format="png")


def _look(index: int) -> dict[str, Any]:
    dash = style.PATTERNS[style.DASHES[index % len(style.DASHES)]]
    return {
        "color": style.LIGHT[index % len(style.LIGHT)],
        "linestyle": (0, dash) if dash else "-",
        "marker": list(style.SYMBOLS.values())[index % len(style.SYMBOLS)],
        "markersize": 4.5,
        "linewidth": 1.6,
    }


def _powers_of_two() -> Any:
    from matplotlib.ticker import LogLocator

    return LogLocator(base=4, numticks=12)


def _none() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()
