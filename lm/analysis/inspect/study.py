"""A model to look into, and what its channels do over a held-out text, beside those of an untrained model."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from lm.analysis.inspect import features
from lm.analysis.inspect.channels import Channels, measure
from lm.analysis.inspect.traces import cells, traces
from lm.config.options import Config
from lm.corpora.tokenizer import CharTokenizer
from lm.model import LanguageModel
from lm.report.format import align, number
from lm.sampling.packed import UnsupportedError, require_supported

CLEAREST = 20
"""Channels that are listed."""
SEED = 0
"""Of the untrained model's weights."""


@dataclass(frozen=True)
class Subject:
    """A trained model under the name that the page gives it."""

    name: str
    model: LanguageModel
    tokenizer: CharTokenizer
    config: Config

    @property
    def problem(self) -> str:
        """Why the page cannot run the model, and has nothing of it but its surprise; empty if it can."""
        try:
            require_supported(self.model)
        except UnsupportedError as error:
            return str(error)
        return ""

    @property
    def hidden(self) -> list[int]:
        """The channels of each layer; empty for a model with a problem."""
        return [] if self.problem else [cell.hidden for cell in cells(self.model)]

    @property
    def about(self) -> str:
        """Mixer, size and corpus."""
        config = self.config
        return f"{config.mixer_name}, {self.model.parameters_total:,} parameters, trained on {config.data.corpus}"


@dataclass(frozen=True)
class Match:
    """A channel, and the feature that it follows most clearly."""

    channel: int
    feature: int
    gain: float
    """|correlation| less the largest one that any channel of the untrained model has with the feature"""


@dataclass(frozen=True)
class Study:
    """The channels of a model over a held-out text."""

    text: str
    extent: str
    """how much of the held-out split the text is"""
    channels: Channels
    control: Channels
    """of an untrained model"""

    @classmethod
    def of(cls, subject: Subject, text: str, of: int) -> "Study":
        """Read the beginning of a held-out split of so many characters with the model, and with an untrained one."""
        model, ids, values = subject.model, subject.tokenizer.encode(text), features.table(text)
        fresh = untrained(subject)
        extent = f"{of:,} held-out characters" if of == len(text) else f"{len(text):,} of {of:,} held-out characters"
        return cls(text, extent, *(measure(traces(each, ids), values, subject.hidden) for each in (model, fresh)))

    @property
    def limits(self) -> np.ndarray:
        """The largest |correlation| of each feature with any channel of the untrained model (F,); NaN without one."""
        return np.max(np.abs(self.control.correlation), axis=1, initial=-1, where=~np.isnan(self.control.correlation))

    def clearest(self, count: int = CLEAREST) -> list[Match]:
        """The channels whose correlation with a feature exceeds most what an untrained model has."""
        gain = np.nan_to_num(np.abs(self.channels.correlation) - self.limits[:, None], nan=-1)
        best = gain.argmax(0)
        gains = gain[best, np.arange(len(best))]
        order = np.argsort(-gains, kind="stable")[:count]
        return [Match(int(c), int(best[c]), float(gains[c])) for c in order if gains[c] > 0]

    def lines(self) -> list[str]:
        """Tables of the time constants by layer, and of the clearest channels."""
        times = [self.channels.time[self.channels.layer(i)] for i in range(len(self.channels.hidden))]
        rows = [
            [str(i + 1), str(len(time)), *(f"{value:.1f}" for value in np.percentile(time, [0, 50, 90, 100]))]
            for i, time in enumerate(times)
        ]
        names, r = list(features.FEATURES), self.channels.correlation
        clear = [
            [names[c.feature], self.channels.name(c.channel), f"{r[c.feature, c.channel]:+.2f}",
             number(float(self.limits[c.feature])), f"{self.channels.time[c.channel]:.1f}"]
            for c in self.clearest()
        ]  # fmt: skip
        return [
            "Time constants in characters, -1 / mean ln(1 - z):", "",
            *align([["layer", "channels", "shortest", "median", "nine tenths below", "longest"], *rows], left=1), "",
            f"What channels stand for: correlation of the state over {self.extent}, and the",
            "largest that any channel of an untrained model has:", "",
            *align([["feature", "channel", "correlation", "untrained", "time constant"], *clear]),
        ]  # fmt: skip


def untrained(subject: Subject) -> LanguageModel:
    """A model of the same architecture with fresh weights from SEED.

    Its blocks write into the residual stream from the start (model.residual_init 1); with 0, all layers would read the
    embedding alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return LanguageModel(len(subject.tokenizer), replace(subject.config.model, residual_init=1.0)).eval()
