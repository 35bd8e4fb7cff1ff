"""`char-lm export --format web`: one page in which a model writes; a file that opens anywhere and asks for nothing."""

import os
from pathlib import Path

from lm.config.options import COPYING
from lm.files import UserError, atomic_write
from lm.report.html import fill, texts
from lm.runs.export import read_chosen
from lm.runs.load import Trained, make_model
from lm.sampling.web.block import make_block

ENGINE = ("lm.sampling.web/engine.js", "lm.sampling.web/sampler.js")
"""The scripts of a page that runs a model."""


def export(run: str | os.PathLike[str], page: Path, which: str = "best", weights: str = "bfloat16") -> str:
    """Write the page: all of it or, after an error, nothing. Returns how to use it, in a line.

    Raises:
        UserError: there is no such model, it cannot run in a page, or the page cannot be written.
    """
    saved = read_chosen(run, which)
    if saved.config.data.corpus == COPYING:
        raise UserError(f"{saved.path} answers {COPYING}, it writes no text for a page")
    atomic_write(page, render(saved, weights))
    return "open it in a browser"


def render(saved: Trained, weights: str) -> str:
    """The page of a model whose matrices are kept as `weights`. Raises UserError if it cannot run in one."""
    model, config = make_model(saved), saved.config
    parameters = f"{config.mixer_name}, {model.parameters_total:,} parameters, {weights}"
    data = {
        "about": f"{config.name}: {parameters}, trained on {config.data.corpus}",
        "block": make_block(model, saved.tokenizer, weights),
    }
    template, *styles = texts("lm.sampling.web/page.html", "lm.report/page.css", "lm.sampling.web/page.css")
    scripts = texts("lm.report/page.js", *ENGINE, "lm.sampling.web/page.js")
    return fill(template, "".join(styles), data, scripts, wasm=True)
