"""Small models, their decoding by full recomputation, and texts of a decoder, for the tests of sampling."""

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
import torch

from lm.config.options import MixerOptions, ModelConfig
from lm.corpora.tokenizer import CharTokenizer
from lm.mixers import MIXERS
from lm.model import LanguageModel
from lm.sampling.decoder import Decoder, Position
from lm.sampling.filters import SamplingOptions
from lm.sampling.text import Piece, write

TOKENIZER = CharTokenizer("".join(map(chr, range(65, 65 + 29))))
"""29 characters from A on, for the 30 ids of `make`."""
CASES = {name: {"mixer": name} for name in MIXERS} | {
    "window": {"mixer": "attention", "options": MixerOptions(window=7)},
    "hybrid": {"mixer": ["mingru", "attention", "minlstm"], "layers": 3},
}
every_model = pytest.mark.parametrize("case", CASES)
GREEDY = SamplingOptions(temperature=0)
WILD = SamplingOptions(temperature=1.3, top_k=20, top_p=0.95, min_p=0.001)


def make(case: str = "mingru", vocabulary: int = 30) -> LanguageModel:
    """A model in eval mode in which no matrix is zero."""
    torch.manual_seed(0)
    fields = {"width": 32, "layers": 2, "residual_init": 1.0} | CASES[case]
    model = LanguageModel(vocabulary, ModelConfig(**fields)).eval()
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model


def philox(seed: int, sample: int, n: int) -> np.ndarray:
    """The first n random numbers of a sample's stream."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, sample])).random(n)


def choose_slowly(
    logits: Sequence[float], uniform: float, temperature=1.0, top_k: int = 0, top_p=1.0, min_p=0.0
) -> int:
    """The next id by the definitions of the filters, in plain Python."""
    ids = sorted(range(len(logits)), key=lambda i: -logits[i])
    if temperature == 0:
        return ids[0]
    weight = {i: math.exp((logits[i] - logits[ids[0]]) / temperature) for i in ids}
    kept = ids[: top_k or None]
    total, nucleus = sum(weight[i] for i in kept), []
    while sum(weight[i] for i in nucleus) < top_p * total and len(nucleus) < len(kept):
        nucleus.append(kept[len(nucleus)])
    kept = sorted(i for i in nucleus if weight[i] >= min_p * weight[ids[0]])
    total, cumulative = sum(weight[i] for i in kept), 0.0
    for i in kept:
        cumulative += weight[i]
        if cumulative > uniform * total:
            return i
    return kept[-1]


@torch.no_grad()
def recompute(model: LanguageModel, ids: Iterable[int], n: int, seed: int = 0, sample: int = 0, **options) -> list[int]:
    """n ids after some others, each from a forward pass over all before it. The last id is never chosen."""
    ids, numbers = list(map(int, ids)), philox(seed, sample, n)
    start = len(ids)
    for uniform in numbers:
        logits = model(torch.tensor([ids]))[0][0, -1, :-1].tolist()
        ids.append(choose_slowly(logits, uniform, **options))
    return ids[start:]


def texts(decoder: Decoder, chars: int | None, options: SamplingOptions, **arguments) -> tuple[list[str], list[Piece]]:
    """The text of each sample, and its last piece."""
    text: dict[int, str] = {}
    last: dict[int, Piece] = {}
    for piece in itertools.chain.from_iterable(write(decoder, TOKENIZER, chars, options, **arguments)):
        text[piece.sample] = text.get(piece.sample, "") + piece.text
        last[piece.sample] = piece
    return [text[i] for i in sorted(text)], [last[i] for i in sorted(last)]


def same(a: Position, b: Position) -> bool:
    """Whether two positions are equal to the bit."""
    states = zip(itertools.chain(*a.state), itertools.chain(*b.state), strict=True)
    return a.drawn == b.drawn and np.array_equal(a.logits, b.logits) and all(torch.equal(x, y) for x, y in states)
