"""The views of the page as PNG files, for a report."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lm.analysis.inspect.features import FEATURES
from lm.analysis.inspect.study import Study, Subject
from lm.analysis.inspect.traces import predict, traces
from lm.report.plot import FAINT, SOFT, picture
from lm.report.style import LIGHT

LOW, HIGH = LIGHT[:2]
FONT = "DejaVu Sans Mono"
"""Of texts; it comes with matplotlib."""
LINES, COLUMNS = 14, 52
"""Of a text in a picture."""
STRETCH, LONGEST, SQUARE = 100, 40, 70
"""Characters and channels in a picture of them, and characters in one of characters by characters."""
TEXT_SIZE, DPI = (5.4, 3.6), 120


def draw(prefix: str, subject: Subject, text: str, study: Study | None, channels: Sequence[int]) -> None:
    """Write PREFIXsurprise.png and, if the channels were studied, times, clearest, memory (of the layer of the first of
    some channels), and of each of these channel-1.2 and sources-1.2.

    Args:
        text: at least one character.
        channels: by default the three clearest.

    Raises:
        UserError: a file cannot be written.
    """
    ids = subject.tokenizer.encode(text)
    with picture(f"{prefix}surprise.png", *TEXT_SIZE, dpi=DPI) as figure:
        bits = predict(subject.model, ids).bits
        _text(figure, text, bits / 9, f"{subject.name}: the darker, the less expected")
    if study is None:
        return
    _times(f"{prefix}times.png", study)
    _clearest(f"{prefix}clearest.png", study)
    found = list(traces(subject.model, ids[: LINES * COLUMNS]))
    z, h = (np.concatenate([getattr(trace, part) for trace in found]) for part in ("z", "h"))
    channels = channels or [clear.channel for clear in study.clearest(3)] or [0]
    _memory(f"{prefix}memory.png", text, study, z, h, channels[0])
    for channel in channels:
        name = study.channels.name(channel)
        state = study.channels.standardise(h)[:, channel]
        with picture(f"{prefix}channel-{name}.png", *TEXT_SIZE, dpi=DPI) as figure:
            _text(figure, text[: len(state)], state / 3, f"channel {name}: orange above, blue below its mean")
        _sources(f"{prefix}sources-{name}.png", text, z[:, channel], h[:, channel], name)


def _colours() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("inspect", [LOW, "white", HIGH])


def _text(figure: Any, text: str, values: np.ndarray, title: str) -> None:
    """The first lines of a text, each character on its colour for a value from -1 to 1."""
    ax = figure.subplots()
    colours = _colours()
    for line, column, place in places(text):
        value = float(np.clip(values[place], -1, 1))
        ax.add_patch(_box(column, line, colours(0.5 + 0.4 * value)))
        shown = _label(text[place])
        ink = SOFT if text[place] == "\n" else "black"
        ax.text(column + 0.5, line + 0.5, shown, ha="center", va="center", family=FONT, fontsize=9, color=ink)
    ax.set(xlim=(0, COLUMNS), ylim=(LINES, 0))
    ax.set_title(title, fontsize=10, loc="left")
    ax.axis("off")


def _label(char: str) -> str:
    """A character as the font has it: no formula, no line end, and a replacement for what it lacks."""
    from matplotlib import font_manager, ft2font

    font = ft2font.FT2Font(font_manager.findfont(FONT))
    known = char.isprintable() and font.get_char_index(ord(char))
    return "\u21b5" if char == "\n" else char.replace("$", r"\$") if known else "\ufffd"


def places(text: str) -> Iterator[tuple[int, int, int]]:
    """(line, column, place) of each character of the first LINES lines, broken after COLUMNS characters."""
    line = column = 0
    for place, char in enumerate(text):
        if column == COLUMNS:
            line, column = line + 1, 0
        if line == LINES:
            return
        yield line, column, place
        line, column = (line + 1, 0) if char == "\n" else (line, column + 1)


def _box(column: int, line: int, colour: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column, line + 0.06), 1, 0.88, color=colour, linewidth=0)


def _memory(path: str, text: str, study: Study, z: np.ndarray, h: np.ndarray, channel: int) -> None:
    """Gates and states of the channels of a layer with the longest memory, by characters."""
    channels = study.channels
    layer = channels.layer_of(channel)
    columns = channels.layer(layer)
    order = np.argsort(-channels.time[columns], kind="stable")[:LONGEST] + columns.start
    states = channels.standardise(h) / 3
    shown = {"gates z": z, "states h, in deviations from the mean": states}
    with picture(path, 11, 7, dpi=DPI) as figure:
        axes = figure.subplots(2, 1)
        for ax, (title, values) in zip(axes, shown.items(), strict=True):
            _map(ax, values[:STRETCH, order].T, text)
            ax.set_ylabel("channels, the longest memory on top")
            ax.set_title(f"layer {layer + 1}: {title}", fontsize=10, loc="left")
            ax.set_yticks([])


def _map(ax: Any, values: np.ndarray, text: str) -> list[str]:
    """Draw a matrix (rows, characters) of values from -1 to 1 over the characters of the text, and return these."""
    ax.imshow(values, cmap=_colours(), vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    shown = [_label(char) for char in text[: values.shape[1]]]
    ax.set_xticks(range(len(shown)), shown, family=FONT, fontsize=7)
    ax.tick_params(length=0)
    return shown


def _times(path: str, study: Study) -> None:
    """A histogram of time constants for each layer."""
    edges = 2 ** np.arange(-2, 6.6, 0.5)
    hidden = study.channels.hidden
    with picture(path, 3.2 * max(2, len(hidden)), 2.8, dpi=DPI) as figure:
        axes = figure.subplots(1, len(hidden), sharey=True, squeeze=False)[0]
        for layer, ax in enumerate(axes):
            times = study.channels.time[study.channels.layer(layer)]
            ax.hist(np.clip(times, edges[0], edges[-1]), edges, color=LOW)
            ax.set(xscale="log", yscale="symlog", xlabel="time constant, characters", title=f"layer {layer + 1}")
            ax.set_xticks(2.0 ** np.arange(-2, 7), ["¼", "½", *(str(2**k) for k in range(7))])
            ax.minorticks_off()
            ax.spines[["top", "right"]].set_visible(False)
        axes[0].set_ylabel("channels")


def _clearest(path: str, study: Study) -> None:
    """Correlations of the clearest channels, beside the largest of an untrained model."""
    names, clearest = list(FEATURES), study.clearest()
    r = [abs(study.channels.correlation[clear.feature, clear.channel]) for clear in clearest]
    with picture(path, 7.5, 0.8 + 0.25 * max(4, len(clearest)), dpi=DPI) as figure:
        ax = figure.subplots()
        rows = np.arange(len(clearest))
        ax.barh(rows - 0.18, r, 0.36, color=LOW, label="this model")
        ax.barh(
            rows + 0.18,
            [study.limits[clear.feature] for clear in clearest],
            0.36,
            color=FAINT,
            label="untrained, the largest",
        )
        ax.set_yticks(rows, [f"{names[clear.feature]}  {study.channels.name(clear.channel)}" for clear in clearest])
        ax.set(xlabel="|correlation| with the state of the channel", xlim=(0, 1))
        ax.invert_yaxis()
        ax.spines[["top", "right"]].set_visible(False)
        figure.legend(frameon=False, loc="outside lower center", ncols=2)


def shares(z: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Share of position s in the state at t of one channel, (n, n) [t, s], from its gates and states (n,).

    The formula is in `lm.analysis.inspect.traces`. Each row sums to 1, as the first state is 0.
    """
    z, h = z.astype(np.float64), h.astype(np.float64)
    put = h - (1 - z) * np.append(0, h[:-1])
    kept = np.zeros((len(h), len(h)))
    for t in range(len(h)):
        kept[t, :t] = kept[t - 1, :t] * (1 - z[t])
        kept[t, t] = 1
    return kept * put / h[:, None]


def _sources(path: str, text: str, z: np.ndarray, h: np.ndarray, name: str) -> None:
    """For each of the first characters, the shares of earlier positions in the state of a channel there."""
    matrix = shares(z[:SQUARE], h[:SQUARE])
    with picture(path, 8.2, 7.8, dpi=90) as figure:
        ax = figure.subplots()
        labels = _map(ax, np.sqrt(np.maximum(matrix, 0)), text)
        ax.set_yticks(range(len(labels)), labels, family=FONT, fontsize=7)
        ax.set(xlabel="the position that put it there", ylabel="the state after this character")
        ax.set_title(f"channel {name}: where its state comes from", fontsize=10, loc="left")
