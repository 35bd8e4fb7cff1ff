"""`char-lm evaluate`: losses of trained models on a split, in nats per character."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from lm.analysis.text import print_figures, scored_data
from lm.config.command import command_line
from lm.config.fields import POSITIONAL, Count, Output, Positive, Range
from lm.config.options import COPYING, Config, DataConfig, Weights
from lm.corpora.copying import Copying
from lm.corpora.tokenizer import CharTokenizer
from lm.files import UserError, shorten
from lm.report.document import inserted

if TYPE_CHECKING:
    from lm.model import Ensemble, LanguageModel

    Loaded = tuple[LanguageModel | Ensemble, CharTokenizer, Config]

USAGE = "RUN [RUN ...] [--corpus NAME] [--contexts N ...] [--weights int8] [--ensemble] [--dynamic LR] [--text]"


@dataclass
class Options:
    """Losses of runs, in nats per character, on the validation split of their corpus or of another."""

    runs: Annotated[list[str], POSITIONAL]
    """names or folders of runs, checkpoint files, exported folders, or hub:USER/NAME"""
    corpus: str | None = None
    """corpus whose validation split is scored, instead of the run's own"""
    contexts: list[Count] = field(default_factory=list)
    """windows of these lengths instead of the run's own"""
    weights: Weights = "float32"
    """round the weights to bfloat16 or int8 first, as `char-lm generate` does"""
    ensemble: bool = False
    """also score the mean of all runs' probabilities"""
    dynamic: Positive | None = None
    """also let the weights learn from the text at this learning rate, from each 64 characters after they are scored"""
    text: bool = False
    """figures of text that the runs write, beside those of the validation split"""
    chars: Annotated[int, Range(least=100, most=10**7)] = 10_000
    """with --text: characters to write"""
    png: Output | None = None
    """draw the losses against the context"""
    insert: str | None = None
    """put what is printed into this document, between the marks `evaluate`, or FILE#MARK"""


def run(options: Options) -> int:
    """Print the losses of the runs. Returns the exit code."""
    with inserted(options.insert, "evaluate", command_line("char-lm evaluate", options)):
        if options.text:
            print_figures(options.runs, options.chars, options.corpus)
            return 0
        models = [_load(name, options) for name in options.runs]
        per_byte = any(tokenizer.unit == "byte" for _, tokenizer, _ in models)
        each = zip(options.runs, models, strict=True)
        losses = {name: _losses(name, model, options, per_byte) for name, model in each}
        if options.ensemble:
            _losses(f"ensemble of {len(models)}", _average(models), options, per_byte)
    if options.png:
        _draw(options.png, losses)
    return 0


def _load(run: str, options: Options) -> "Loaded":
    from lm.runs.load import load_with_config
    from lm.sampling.packed import Packed, pack

    model, tokenizer, config = load_with_config(run)
    if options.weights != "float32":
        model = cast(Packed, pack(model, options.weights)).model  # the model with rounded weights
    return model, tokenizer, config


def _average(loaded: "list[Loaded]") -> "Loaded":
    """The ensemble, with the configuration of its first model. Raises UserError if the vocabularies differ."""
    from lm.model import Ensemble

    models, tokenizers, configs = zip(*loaded, strict=True)
    if len({tokenizer.characters for tokenizer in tokenizers}) > 1 or configs[0].data.corpus == COPYING:
        raise UserError(
            "--ensemble: the runs must have been trained on texts with the same characters, or all on bytes"
        )
    return Ensemble(models), tokenizers[0], configs[0]


def _losses(run: str, loaded: "Loaded", options: Options, per_byte: bool) -> list[tuple[float, float]]:
    """Print the losses of a run, also those per byte if asked for. Returns (context, loss) of the windowed ones."""
    from lm.corpora.corpus import load_corpus
    from lm.training.loss import dynamic_loss, streaming_loss, windowed_loss

    model, tokenizer, config = loaded
    contexts = options.contexts or [config.data.context]
    if len(options.runs) > 1:
        print(f"{run} ({config.mixer_name}, trained at context {config.data.context})")
    if config.data.corpus == COPYING:
        if options.corpus is not None:
            raise UserError(f"--corpus: {run} was trained on {COPYING}, not on text")
        return [(context, _print_copying(model, config.data, context)) for context in contexts]
    text = load_corpus(scored_data(config, options.corpus))
    ids = text.validation
    if text.tokenizer.characters != tokenizer.characters:
        ids = tokenizer.encode(text.tokenizer.decode(ids))
    characters, size = tokenizer.count(ids[1:])
    characters = max(1, characters)  # what is no text may have none
    scale = (len(ids) - 1) / characters  # from an id to a character
    length = size / characters if per_byte else None
    losses: list[tuple[float, float]] = []
    for context in contexts:
        if not context < len(ids):
            raise UserError(
                f"--contexts: {shorten(context)} is not below the {len(ids):,} {tokenizer.unit}s that are scored"
            )
        losses.append((context, scale * windowed_loss(model, ids, context)))
        _print_loss(f"windowed {context}", losses[-1][1], length)
    _print_loss("streaming", scale * streaming_loss(model, ids), length)
    if options.dynamic:
        _print_loss("dynamic", scale * dynamic_loss(model, ids, options.dynamic), length)
    return losses


def _draw(path: str, losses: dict[str, list[tuple[float, float]]]) -> None:
    from lm.report.plot import Curve, Panel, save

    curves: dict[str, list[Curve]] = {Path(run).name: [curve] for run, curve in losses.items()}
    panel = Panel("context of validation, characters", "validation loss, nats per character", curves)
    save(path, [panel], scales=("log", "linear"))


def _print_copying(model: "LanguageModel | Ensemble", config: DataConfig, context: int) -> float:
    from lm.training.loss import copying_answers

    config = replace(config, context=context, copying=replace(config.copying, shortest=0))
    loss, right = copying_answers(model, Copying.from_config(config))
    answers, whole = right.double().mean(0), right.all(1).double().mean()
    print(
        f"context {context:<8} {loss:.4f} nats/answer  {answers.mean():.2%} right  (answer {answers.argmin() + 1}: "
        f"{answers.min():.2%}; whole problems: {whole:.2%})",
        flush=True,
    )
    return loss


def _print_loss(name: str, loss: float, length: float | None) -> None:
    """Print a loss per character; where the mean length of these in bytes is given, also per byte."""
    per_byte = "" if length is None else f"  {loss / length:.4f} nats/byte"
    print(f"{name:<16} {loss:.4f} nats/char  {loss / math.log(2):.4f} bits/char{per_byte}", flush=True)
