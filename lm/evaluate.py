"""Losses of a model on a split, every character but the first scored exactly once, in nats per character.

`python -m lm.evaluate RUN ...` prints them for runs.
"""

import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lm.config import COPYING, DataConfig, Parser, UserError, shorten
from lm.copying import IGNORED, Copying
from lm.data import Piece, stream, windows
from lm.document import command_line, inserted
from lm.model import LanguageModel


def nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood in float32; logits (B, T, V) of any type, targets (B, T), -100 ignored."""
    return cross_entropy(logits.float().flatten(0, 1), targets.flatten())


@torch.inference_mode()
def windowed_loss(model: LanguageModel, ids: np.ndarray, context: int) -> float:
    """Non-overlapping windows, each read from the initial state."""
    return _mean(model, windows(ids, context), carry=False)


@torch.inference_mode()
def streaming_loss(model: LanguageModel, ids: np.ndarray) -> float:
    """One pass with the state carried from the first character to the last."""
    return _mean(model, stream(ids), carry=True)


def _mean(model: LanguageModel, pieces: Iterable[Piece], carry: bool) -> float:
    total, count, state = 0.0, 0, None
    device = model.head.weight.device
    for piece in pieces:
        x, y = (torch.from_numpy(part).to(device) for part in piece)
        logits, new = model(x, state)
        state = new if carry else None
        total += nll(logits, y).item() * y.numel()
        count += y.numel()
    return total / count


def make_parser() -> Parser:
    """The options, with their help."""
    parser = Parser(
        prog="python -m lm.evaluate",
        usage="RUN [RUN ...] [--corpus NAME] [--contexts N ...] [--weights int8] [--png FILE]",
        description="Losses of runs, in nats per character, on the validation split of their corpus or another text.",
    )
    add = parser.add_argument
    add("runs", nargs="+", type=str, help="names or folders of runs, checkpoint files, or exported folders")
    add("--corpus", type=str, help="score the validation tenth of this one instead of the run's own")
    add("--contexts", type=int, nargs="+", help="windows of these lengths instead of the run's own")
    add("--weights", type=str, default="float32", help="round them first: bfloat16 or int8, as generate.py does")
    add("--png", type=str, help="draw the losses against the context")
    add("--insert", type=str, help="put what is printed into this document, between the marks `evaluate`, or FILE#MARK")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Print the losses of one run or several."""
    words = sys.argv[1:] if argv is None else argv
    parser = make_parser()
    options = parser.parse_args(words)
    document, _, mark = (options.insert or "").partition("#")
    from lm.compare.__main__ import check_outputs

    try:
        if wrong := [context for context in options.contexts or [] if context < 1]:
            raise UserError(f"--contexts: must be at least 1, not {wrong[0]}")
        check_outputs((options.png,))
        with inserted(Path(document) if document else None, mark or "evaluate", command_line("lm.evaluate", words)):
            losses = {run: _losses(run, options) for run in options.runs}
        if options.png:
            _draw(options.png, losses)
    except UserError as error:
        parser.error(str(error))


def _losses(run: str, options: Any) -> list[tuple[float, float]]:
    """Print the losses of a run; returns (context, loss) of those in windows."""
    from lm.corpus import load_corpus
    from lm.packed import Packed, pack
    from lm.run import load_with_config

    model, tokenizer, config = load_with_config(run)
    if options.weights != "float32":
        model = cast(Packed, pack(model, options.weights)).model  # what generate.py computes with, in parallel
    contexts = options.contexts or [config.data.context]
    if len(options.runs) > 1:
        print(f"{run} ({config.mixer_name}, trained at context {config.data.context})")
    if config.data.corpus == COPYING:
        if options.corpus is not None:
            raise UserError(f"--corpus: {run} was trained on {COPYING}, not on text")
        return [(context, _print_copying(model, config.data, context)) for context in contexts]
    text = load_corpus(config.data if options.corpus is None else DataConfig(corpus=options.corpus, context=1))
    ids = text.validation
    if text.tokenizer.characters != tokenizer.characters:
        ids = tokenizer.encode(text.tokenizer.decode(ids))
    losses = []
    for context in contexts:
        if not context < len(ids):
            raise UserError(f"--contexts: {shorten(context)} is not below the {len(ids):,} characters that are scored")
        losses.append((context, windowed_loss(model, ids, context)))
        _print_loss(f"windowed {context}", losses[-1][1])
    _print_loss("streaming", streaming_loss(model, ids))
    return losses


def _draw(path: str, losses: dict[str, list[tuple[float, float]]]) -> None:
    from lm.bench.plot import Panel, save

    panel = Panel("", "validation loss, nats per character", {Path(run).name: curve for run, curve in losses.items()})
    save(path, [panel], "context of validation, characters", "", logarithmic=False)


@torch.inference_mode()
def copying_accuracy(model: LanguageModel, problems: Copying) -> tuple[float, float]:
    """Mean loss and share of right answers over the held-out problems."""
    totals = torch.zeros(3)
    for piece in problems.validation():
        x, y = (torch.from_numpy(part).to(model.head.weight.device) for part in piece)
        logits, _ = model(x)
        count = (y != IGNORED).sum().item()
        right = (logits.argmax(-1) == y).sum().item()
        totals += torch.tensor([nll(logits, y).item() * count, right, count])
    loss, right, count = totals.tolist()
    return loss / count, right / count


def _print_copying(model: LanguageModel, config: DataConfig, context: int) -> float:
    loss, accuracy = copying_accuracy(model, Copying.of(replace(config, context=context)))
    print(f"context {context:<8} {loss:.4f} nats/answer  {accuracy:.2%} right", flush=True)
    return loss


def _print_loss(name: str, loss: float) -> None:
    print(f"{name:<16} {loss:.4f} nats/char  {loss / math.log(2):.4f} bits/char", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
