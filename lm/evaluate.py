"""Losses of a model on a split, every character but the first scored exactly once, in nats per character.

`python -m lm.evaluate RUN` prints them for a run.
"""

import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lm.config import COPYING, DataConfig, Parser, UserError
from lm.copying import IGNORED, Copying
from lm.data import Piece, stream, windows
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


def main(argv: list[str] | None = None) -> None:
    """Print the losses of a run on the validation split of its corpus, or of another text."""
    parser = Parser(
        prog="python -m lm.evaluate",
        usage="RUN [--corpus NAME] [--contexts N ...] [--weights int8]",
        description=__doc__,
    )
    parser.add_argument("run", help="a run's name or folder, or a checkpoint file")
    parser.add_argument("--corpus", type=str, help="score the validation tenth of this one instead of the run's own")
    parser.add_argument("--contexts", type=int, nargs="+", help="windows of these lengths instead of the run's own")
    parser.add_argument("--weights", type=str, default="float32", help="round them first: bfloat16 or int8")
    arguments = parser.parse_args(argv)
    try:
        _print_losses(arguments.run, arguments.corpus, arguments.contexts, arguments.weights)
    except UserError as error:
        parser.error(str(error))


def _print_losses(run: str, corpus: str | None, contexts: list[int] | None, weights: str) -> None:
    from lm.corpus import load_corpus
    from lm.packed import Packed, pack
    from lm.run import load_with_config

    model, tokenizer, config = load_with_config(run)
    if weights != "float32":
        model = cast(Packed, pack(model, weights)).model  # what generate.py computes with, in parallel
    if config.data.corpus == COPYING:
        if corpus is not None:
            raise UserError(f"--corpus: {run} was trained on {COPYING}, not on text")
        _print_copying(model, config.data, contexts or [config.data.context])
        return
    data = config.data if corpus is None else DataConfig(corpus=corpus, context=1)
    text = load_corpus(data)
    ids = text.validation
    if text.tokenizer.characters != tokenizer.characters:
        ids = tokenizer.encode(text.tokenizer.decode(ids))
    for context in contexts or [config.data.context]:
        if not 1 <= context < len(ids):
            raise UserError(f"contexts: {context} is not between 1 and {len(ids) - 1}")
        _print_loss(f"windowed {context}", windowed_loss(model, ids, context))
    _print_loss("streaming", streaming_loss(model, ids))


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


def _print_copying(model: LanguageModel, config: DataConfig, contexts: list[int]) -> None:
    for context in contexts:
        loss, accuracy = copying_accuracy(model, Copying.of(replace(config, context=context)))
        print(f"context {context:<8} {loss:.4f} nats/answer  {accuracy:.2%} right", flush=True)


def _print_loss(name: str, loss: float) -> None:
    print(f"{name:<16} {loss:.4f} nats/char  {loss / math.log(2):.4f} bits/char", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
