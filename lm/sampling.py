"""Text from a model: prefill in parallel by `forward`, then decode one character at a time by `step`.

The filters are pure functions on logits (..., V): what they exclude becomes -inf.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lm.model import LanguageModel
from lm.tokenizer import CharTokenizer

PREFILL = 4096
"""Characters of the prompt that one forward pass reads: bounds the memory, whatever the prompt's length."""


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits of each row (and what equals the smallest of them); 0 keeps all."""
    if not 0 < k < logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k, dim=-1).values[..., -1:], -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest most probable ids that together have probability p (nucleus sampling, arXiv 1904.09751)."""
    if p >= 1:
        return logits
    ordered, index = logits.sort(dim=-1, descending=True)
    probability = ordered.softmax(dim=-1)
    before = probability.cumsum(dim=-1) - probability  # what the more probable ones have together
    excluded = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, before >= p)
    return logits.masked_fill(excluded, -torch.inf)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep ids at least p times as probable as the most probable one (arXiv 2407.01082); 0 keeps all."""
    if p <= 0:
        return logits
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + np.log(p), -torch.inf)


class Chooser:
    """Picks ids from logits: temperature, then top-k, then top-p, then min-p. Temperature 0 takes the most probable.

    Sample i draws from a stream of its own, a function of (seed, i): it is the same whatever other samples there are.
    """

    def __init__(
        self,
        samples: range = range(1),
        seed: int = 0,
        temperature: float = 1.0,
        k: int = 0,
        p: float = 1.0,
        minimum: float = 0.0,
    ) -> None:
        self.temperature, self.k, self.p, self.minimum = temperature, k, p, minimum
        self.streams = [np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, i])) for i in samples]

    def __call__(self, logits: Tensor) -> Tensor:
        """logits (samples, V) -> ids (samples,)."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        logits = min_p(top_p(top_k(logits.double() / self.temperature, self.k), self.p), self.minimum)
        cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
        uniform = torch.tensor([[stream.random()] for stream in self.streams], dtype=torch.float64).to(logits.device)
        # The first id whose cumulative probability exceeds the draw; scaled, so that rounding cannot go past the end.
        return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0]


@torch.inference_mode()
def decode(model: LanguageModel, prompt: np.ndarray, choose: Chooser) -> Iterator[np.ndarray]:
    """Endless continuations of a prompt, ids (n,) with n >= 1: yields one id per sample at a time, (samples,).

    The model should be in eval mode. The unknown id, the last of the vocabulary, is never chosen. The prompt is read
    once; time and memory per character do not grow with what was read or written.
    """
    device = model.head.weight.device
    state = None
    for chunk in torch.from_numpy(prompt.astype(np.int64)).to(device).split(PREFILL):
        logits, state = model(chunk[None], state)
    samples = len(choose.streams)
    assert state is not None
    state = tuple(tuple(part.expand(samples, *part.shape[1:]).contiguous() for part in layer) for layer in state)
    logits = logits[:, -1].expand(samples, -1)
    while True:
        logits = logits.float()
        logits[:, -1] = -torch.inf
        ids = choose(logits)
        yield ids.cpu().numpy()
        logits, state = model.step(ids, state)


def start_ids(tokenizer: CharTokenizer, prompt: str) -> np.ndarray:
    """Ids of a prompt. An empty one stands for the start of a line."""
    return tokenizer.encode(prompt or ("\n" if "\n" in tokenizer.characters else tokenizer.characters[0]))


def generate(
    model: LanguageModel,
    tokenizer: CharTokenizer,
    prompt: str = "",
    chars: int = 1000,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    sample: int = 0,
    stop: str | None = None,
) -> Iterator[str]:
    """The continuation of a prompt, piece by piece as it is written; pieces are single characters without `stop`.

    Args:
        model: in eval mode, as `lm.load` returns it.
        prompt: characters of the vocabulary; others are read as the unknown.
        chars: how many characters to write at most.
        seed, sample: choose the stream of randomness: the text is a function of both.
        stop: end before this text.

    >>> model, tokenizer = lm.load("runs/first")
    >>> print("".join(generate(model, tokenizer, "ROMEO:", 200)))
    """
    choose = Chooser(range(sample, sample + 1), seed, temperature, top_k, top_p, min_p)
    ids = decode(model, start_ids(tokenizer, prompt), choose)
    text = (tokenizer.decode(next(ids)) for _ in range(chars))
    return until(text, stop) if stop else text


def until(pieces: Iterator[str], stop: str) -> Iterator[str]:
    """Pass pieces of text on until `stop` appears in them; holds back what may become its beginning."""
    held = ""
    for piece in pieces:
        held += piece
        if stop in held:
            yield held[: held.index(stop)]
            return
        keep = next(n for n in range(min(len(stop) - 1, len(held)), -1, -1) if held.endswith(stop[:n]))
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    yield held
