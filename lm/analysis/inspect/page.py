"""The page of `char-lm inspect`: models, figures of their channels and our scripts in one file (`lm.report.html`)."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.analysis.inspect.features import FEATURES
from lm.analysis.inspect.study import Study, Subject
from lm.analysis.inspect.traces import predict
from lm.corpora.tokenizer import UNKNOWN
from lm.report.html import fill, texts
from lm.sampling.web.block import make_block
from lm.sampling.web.page import ENGINE

SCRIPTS = "base reader text surprise writing channels memory sources page".split()
"""In the order in which they run, after what all pages use, and the engine."""
LARGEST = 2**15 - 1
"""What stands for a correlation of 1."""
MOST_TYPED = 10_000
"""Characters that the page reads of a text that is typed."""


def page(subjects: Sequence[Subject], text: str, note: str, study: Study | None, weights: str) -> str:
    """The page of one model, or of two.

    Args:
        text: what the page shows first.
        note: a remark on it, or nothing.
        study: of the first model; None if the page cannot run it.
        weights: precision of the matrices in the page.
    """
    notes = [*([note] if note else []), *map(remark, [subject for subject in subjects if subject.problem])]
    data = {
        "models": [model_data(subject, text, weights) for subject in subjects],
        "text": text,
        "notes": notes,
        "most": MOST_TYPED,
        "weights": weights,
        "study": study and study_data(study),
    }
    return render(data)


def remark(subject: Subject) -> str:
    """What the page leaves out for a model that it cannot run, and why."""
    return (
        f"{subject.name}: {subject.problem}, so the page does not run this model. It shows the surprise and the "
        "alternatives that were computed for this text; it leaves out what channels do, and typing and writing text."
    )


def model_data(subject: Subject, text: str, weights: str) -> dict[str, Any]:
    """A model as the page runs it or, if it cannot, what it predicts for the text."""
    about = {"name": subject.name, "about": subject.about}
    if not subject.problem:
        return about | {"block": make_block(subject.model, subject.tokenizer, weights)}
    found = predict(subject.model, subject.tokenizer.encode(text))
    return about | {
        "block": None,
        "characters": subject.tokenizer.characters + UNKNOWN,
        "bits": pack(found.bits, "f4"),
        "top": pack(found.ids, "i4"),
        "shares": pack(found.probabilities, "f4"),
    }


def study_data(study: Study) -> dict[str, Any]:
    """The figures of the channels; correlations as 16-bit numbers, the lowest one for none."""
    channels = study.channels
    steps = {
        name: np.where(np.isnan(r), -LARGEST - 1, np.nan_to_num(r) * LARGEST).round()
        for name, r in (("correlation", channels.correlation), ("control", study.control.correlation))
    }
    return {
        "text": study.text,
        "extent": study.extent,
        "features": list(FEATURES),
        "hidden": channels.hidden,
        "clearest": [[clear.feature, clear.channel] for clear in study.clearest()],
        **{name: pack(getattr(channels, name), "f4") for name in ("time", "mean", "deviation")},
        **{name: pack(getattr(channels, name), "i4") for name in ("highest", "lowest")},
        **{name: pack(values, "i2") for name, values in steps.items()},
    }


def pack(values: np.ndarray, kind: str) -> str:
    """An array as little-endian numbers in base64."""
    return base64.b64encode(np.ascontiguousarray(values).astype(f"<{kind}").tobytes()).decode()


def render(data: dict[str, Any]) -> str:
    """The page that shows `data`."""
    template, *styles = texts("lm.analysis.inspect/page.html", "lm.report/page.css", "lm.analysis.inspect/page.css")
    scripts = texts("lm.report/page.js", *ENGINE, *(f"lm.analysis.inspect/{name}.js" for name in SCRIPTS))
    return fill(template, "".join(styles), data, scripts, wasm=True)
