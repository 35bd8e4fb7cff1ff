"""What each channel of a model remembers over a text: how long, what it follows, where it is highest and lowest."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lm.analysis.inspect.traces import Trace
from lm.files import UserError

EXTREMES, SEGMENT = 3, 128
"""Places that are kept for each channel at either end; at most one in so many characters."""


@dataclass(frozen=True)
class Channels:
    """Figures of C channels, those of all layers side by side, over a text; F features."""

    hidden: list[int]
    """channels of each layer"""
    time: np.ndarray
    """time constants in characters, -1 / mean ln(1 - z): (C,)"""
    mean: np.ndarray
    """of the state h (C,)"""
    deviation: np.ndarray
    """standard deviation of h (C,)"""
    correlation: np.ndarray
    """of h with each feature (F, C); NaN where one of the two is constant"""
    highest: np.ndarray
    """places of the text where h is highest, the highest first (EXTREMES, C); -1 where there is none"""
    lowest: np.ndarray
    """likewise, the lowest first"""

    def layer(self, number: int) -> slice:
        """The columns of a layer, from 0."""
        start = sum(self.hidden[:number])
        return slice(start, start + self.hidden[number])

    def layer_of(self, channel: int) -> int:
        """The layer of a channel, both from 0."""
        return int(np.searchsorted(np.cumsum(self.hidden), channel, side="right"))

    def standardise(self, h: np.ndarray) -> np.ndarray:
        """States (n, C) in standard deviations from their means; 0 for a channel that is constant."""
        return (h - self.mean) / np.where(self.deviation > 0, self.deviation, np.inf)

    def name(self, channel: int) -> str:
        """A channel as people count: layer.channel, both from 1."""
        layer = self.layer_of(channel)
        return f"{layer + 1}.{channel - self.layer(layer).start + 1}"


def number(name: str, hidden: list[int]) -> int:
    """The channel of a name, see `Channels.name`. Raises UserError if there is none."""
    layer, _, channel = name.partition(".")
    if layer.isdecimal() and channel.isdecimal() and 0 < int(layer) <= len(hidden):
        before, size = sum(hidden[: int(layer) - 1]), hidden[int(layer) - 1]
        if 0 < int(channel) <= size:
            return before + int(channel) - 1
    sizes = [f"{i + 1}.1 to {i + 1}.{size}" for i, size in enumerate(hidden)]
    raise UserError(f"no channel {name}; there are {', '.join(sizes) or 'none'}")


def measure(traces: Iterator[Trace], features: np.ndarray, hidden: list[int]) -> Channels:
    """The figures of all channels over a text of n characters; memory beyond the features does not grow much with n.

    The sums are of deviations from the first piece's means, so that no digits cancel.

    Args:
        traces: of the text, in pieces.
        features: (F, n).
    """
    sums, start = None, 0
    highest, lowest = Extremes(sum(hidden)), Extremes(sum(hidden))
    for trace in traces:
        f, h = features[:, start : start + len(trace.h)], trace.h
        sums = sums or Sums(f.mean(1), h.mean(0))
        sums.add(f, h, trace.z)
        highest.add(h, start)
        lowest.add(-h, start)
        start += len(h)
    assert sums
    return Channels(hidden, *sums.figures(), highest.best(), lowest.best())


class Sums:
    """Running sums of features (F, n) and states (n, C), less an offset of each, and of ln(1 - z); in float64."""

    def __init__(self, f0: np.ndarray, h0: np.ndarray) -> None:
        self.f0, self.h0 = f0, h0
        self.n, (F, C) = 0, (len(f0), len(h0))
        self.f, self.ff, self.fh = np.zeros(F), np.zeros(F), np.zeros((F, C))
        self.h, self.hh, self.log = np.zeros(C), np.zeros(C), np.zeros(C)

    def add(self, f: np.ndarray, h: np.ndarray, z: np.ndarray) -> None:
        """Add a piece of the text."""
        f, h = f - self.f0[:, None], h - self.h0
        self.n += len(h)
        self.f += f.sum(1)
        self.ff += (f * f).sum(1)
        self.h += h.sum(0)
        self.hh += (h * h).sum(0)
        self.fh += f @ h
        below_1 = np.minimum(z, np.float32(1 - 2**-24))  # a gate that is 1 in float32 is a little less
        self.log += np.log1p(-below_1).sum(0)

    def figures(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Time constants, means and deviations of the states (C,), and correlations (F, C)."""
        f, h = self.f / self.n, self.h / self.n
        f_deviation, h_deviation = (np.sqrt(np.maximum(s / self.n - m**2, 0)) for s, m in ((self.ff, f), (self.hh, h)))
        f_deviation[f_deviation < 1e-9] = np.nan
        with np.errstate(divide="ignore", invalid="ignore"):
            correlation = (self.fh / self.n - np.outer(f, h)) / np.outer(f_deviation, h_deviation)
            time = -self.n / self.log
        return time, self.h0 + h, h_deviation, np.where(np.isfinite(correlation), correlation, np.nan)


class Extremes:
    """The largest values of C channels in any segment of a text, more of them than are asked for, and their places."""

    def __init__(self, C: int) -> None:
        self.values, self.places = np.empty((0, C), np.float32), np.empty((0, C), np.int32)

    def add(self, h: np.ndarray, start: int) -> None:
        """Add a piece (n, C) of the text, which begins at `start`."""
        segments = [h[i : i + SEGMENT] for i in range(0, len(h), SEGMENT)]
        places = [segment.argmax(0).astype(np.int32) + SEGMENT * i + start for i, segment in enumerate(segments)]
        values = np.concatenate([self.values, [segment.max(0) for segment in segments]])
        order = np.argsort(-values, axis=0, kind="stable")[: 2 * EXTREMES]
        self.values = np.take_along_axis(values, order, 0)
        self.places = np.take_along_axis(np.concatenate([self.places, places]), order, 0)

    def best(self) -> np.ndarray:
        """The places of the EXTREMES largest values (EXTREMES, C), the largest first; -1 where there are fewer.

        Places less than half a segment apart, such as at either side of a border, count as one.
        """
        found = np.full((EXTREMES, self.places.shape[1]), -1, dtype=np.int32)
        for channel, candidates in enumerate(self.places.T):
            kept: list[int] = []
            for place in candidates:
                if all(abs(place - other) >= SEGMENT // 2 for other in kept):
                    kept.append(place)
            found[: len(kept[:EXTREMES]), channel] = kept[:EXTREMES]
        return found
