"""Decoding with temperature, in characters per second: one text, many at once, and after a long time.

    peers   batch 1: ours packed (float32, bfloat16, int8) and by `LanguageModel.step`, against others' samplers of
            models of that size, and against the chain of matrix-vector products: every matrix of our model but the
            embedding once, in torch, and nothing else
    batch   many samples at once, over batch 1 and over the limits of arithmetic: torch's product of large matrices and
            the processor's multiply-adds, both in float32, in which our native code computes
    length  time per character and memory after so many generated characters, per mixer

Every contender draws its characters from softmax(logits / temperature): ours by `lm.sampling.text.write`, which
returns text, the peers by torch.multinomial.
"""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lm.bench import measure, models, options, peers
from lm.bench.measure import RefusedError, Row
from lm.bench.peak import Limits
from lm.bench.train import VOCABULARY, make_minlm, make_ours, require_minlm
from lm.config.options import Weights
from lm.corpora.tokenizer import CharTokenizer
from lm.model import LanguageModel
from lm.report.format import number
from lm.sampling.decoder import Decoder, read
from lm.sampling.filters import SamplingOptions
from lm.sampling.packed import Packed, UnsupportedError, linears, pack
from lm.sampling.text import write

TEMPERATURE = 0.8
TOKENIZER = CharTokenizer("".join(map(chr, range(64, 63 + VOCABULARY))))
CHAIN, PLAIN, MINLM = "matrix-vector chain, torch", "ours, LanguageModel.step", "minGRU-pytorch minLM"
GEMM = 1024
GPTS = {384: (6, 6, 256), 0: (4, 4, 64)}
"""Layers, heads and context of the nanoGPT to compare with, from this width on: its Shakespeare and its CPU recipe."""


class Writer:
    """Goes on writing `batch` texts as a user gets them, `chars` characters of each in one call."""

    def __init__(self, model: LanguageModel | Packed, batch: int, chars: int) -> None:
        start = read(model, np.zeros(1, dtype=np.int64))
        self.chars, self.decoder = chars, Decoder(model, [start] * batch)

    def __call__(self, chars: int = 0) -> None:
        for _ in write(self.decoder, TOKENIZER, chars or self.chars, SamplingOptions(TEMPERATURE)):
            pass

    def copy(self) -> "Writer":
        """Another one that goes on from here."""
        other = copy.copy(self)
        other.decoder = Decoder(self.decoder.model, [self.decoder.position(i) for i in range(len(self.decoder.logits))])
        return other


def sampler(logits: Callable[[Tensor, Any], tuple[Tensor, Any]], context: int, chars: int) -> measure.Call:
    """A peer's sampler: (ids (1, context), memory) -> (logits (1, T, V), memory) gives the next character's logits."""
    ids, memory = torch.zeros(1, context, dtype=torch.int64), None

    @torch.inference_mode()
    def write() -> None:
        nonlocal ids, memory
        for _ in range(chars):
            scores, memory = logits(ids[:, -context:], memory)
            choice = torch.multinomial((scores[:, -1] / TEMPERATURE).softmax(dim=-1), 1)
            ids = torch.cat([ids[:, -context:], choice], dim=1)

    return write


def chain(model: LanguageModel, chars: int) -> measure.Call:
    """The matrix-vector products of one model, one after the other."""
    pairs = [(linear.weight.detach(), linear.weight.new_ones(linear.in_features)) for linear in linears(model)]

    @torch.inference_mode()
    def multiply() -> None:
        for _ in range(chars):
            for weight, x in pairs:
                torch.mv(weight, x)

    return multiply


Contender = tuple[measure.Call, int]
"""What is timed, and the characters that one call writes."""


def slow(arguments: options.Sample) -> int:
    """Characters in one timing of contenders that take milliseconds for each."""
    return max(1, arguments.chars // 50)


def make(name: str, width: int, arguments: options.Sample) -> LanguageModel:
    """A model of ours in eval mode, checked. Raises RefusedError."""
    device, _ = measure.device_and_type(arguments)
    model = models.make(name, width, arguments.layers, VOCABULARY, window=arguments.window).to(device).eval()
    measure.require_forward_equals_steps(model, torch.randint(VOCABULARY, (1, 24), device=device))
    return model


def packed(model: LanguageModel, weights: Weights) -> Packed:
    """A packed model, checked against itself with rounded weights. Raises RefusedError."""
    try:
        fast = Packed(model, weights)
    except UnsupportedError as error:
        raise RefusedError(f"not packed: {error}") from None
    measure.require_forward_equals_steps(fast, torch.randint(VOCABULARY, (2, 24)))  # type: ignore[arg-type]
    return fast


def timed(model: nn.Module, write: measure.Call, chars: int) -> tuple[Contender, Row]:
    """A contender, and the columns of its row."""
    return (write, chars), {"parameters": sum(p.numel() for p in model.parameters())}


def minlm(width: int, arguments: options.Sample) -> tuple[Contender, Row]:
    """lucidrains' model with carried state, checked against ours on equal weights. It has no convolution then."""
    model = make_minlm(width, arguments.layers).eval()
    ids = torch.randint(VOCABULARY, (1, 24))
    require_minlm(make_ours("mingru, gelu", 24, width, arguments.layers), model, ids)
    chars = slow(arguments)
    write = sampler(lambda ids, state: model(ids, return_prev_hiddens=True, prev_hiddens=state), 1, chars)
    return timed(model, write, chars)


def gpt(width: int, layers: int, heads: int, context: int, arguments: options.Sample) -> tuple[Contender, Row]:
    """The model of a nanoGPT recipe, which recomputes its whole window for each character."""
    torch.manual_seed(0)
    model = peers.GPT(VOCABULARY, layers, heads, width, context).eval()
    chars = slow(arguments)
    return timed(model, sampler(lambda ids, _: (model(ids), None), context, chars), chars)


def contenders(width: int, arguments: options.Sample) -> dict[str, Callable[[], tuple[Contender, Row]]]:
    """What is timed at batch 1, by name."""
    chars, few = arguments.chars, slow(arguments)
    ours = functools.cache(lambda: make("mingru", width, arguments))
    layers, heads, context = next(shape for least, shape in GPTS.items() if width >= least)

    def fast(weights: Weights) -> tuple[Contender, Row]:
        return timed(ours(), Writer(packed(ours(), weights), 1, chars), chars)

    return {
        CHAIN: lambda: timed(ours(), chain(ours(), few), few),
        **{f"ours, {weights}": functools.partial(fast, weights) for weights in get_args(Weights)},
        PLAIN: lambda: timed(ours(), Writer(ours(), 1, few), few),
        MINLM: lambda: minlm(width, arguments),
        f"nanoGPT {layers} x {width}, context {context}": lambda: gpt(width, layers, heads, context, arguments),
    }


def compare(width: int, arguments: options.Sample) -> list[Row]:
    """One row per contender: characters per second, and the ratios to the three yardsticks."""
    device, _ = measure.device_and_type(arguments)
    made, rows = measure.prepare(contenders(width, arguments), width=width)
    times = measure.in_turns({name: write for name, (write, _) in made.items()}, arguments.repeat, device)
    speeds = {name: [made[name][1] / seconds for seconds in several] for name, several in times.items()}
    for row in rows:
        if "skipped" not in row:
            row["speeds"] = speeds[row["name"]]
            for short, yardstick in (("chain", CHAIN), ("minlm", MINLM), ("nanogpt", "nanoGPT")):
                known = [measure.median(s) for name, s in speeds.items() if name.startswith(yardstick)]
                row[short] = measure.median(row["speeds"]) / known[0] if known else None
    return rows


def compare_batches(weights: Weights, arguments: options.Sample) -> tuple[None, Row]:
    """Characters per second of all samples together, at batch 1 and at --batch. Raises RefusedError."""
    device, dtype = measure.device_and_type(arguments)
    model = make("mingru", arguments.widths[0], arguments)
    fast = packed(model, weights)
    calls: dict[str, measure.Call] = {str(b): Writer(fast, b, arguments.chars) for b in (1, arguments.batch)}
    limits = Limits(GEMM, dtype, device)
    calls |= limits.calls
    times = measure.in_turns(calls, arguments.repeat, device)
    one, many = ([batch * arguments.chars / t for t in times[str(batch)]] for batch in (1, arguments.batch))
    rate = measure.median(many)
    flops = 2 * sum(linear.weight.numel() for linear in linears(model)) * rate
    shares = limits.shares(flops, times)
    return None, {"one": one, "many": many, "ratio": rate / measure.median(one), "flops_per_second": flops, **shares}


def resident() -> int | None:
    """Bytes that this process has in memory now; None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return None


def grow(name: str, arguments: options.Sample) -> tuple[list[Row], Row]:
    """One row per length: seconds per character there, all lengths in turns, and memory as generation went on."""
    device, _ = measure.device_and_type(arguments)
    model = pack(make(name, arguments.widths[0], arguments))
    chars = arguments.chars if isinstance(model, Packed) else slow(arguments)
    writer = Writer(model, 1, chars)
    writers, memory, written = {}, [], 0
    for length in sorted(arguments.generated):
        writer(length - written)
        written = length
        writers[str(length)] = writer.copy()
        memory.append(resident())
    times = measure.in_turns(writers, 5 * arguments.repeat, device)  # a ratio near 1 wants many
    seconds = [[t / chars for t in several] for several in times.values()]
    rows = [
        {
            "name": name,
            "generated": int(length),
            "seconds": several,
            "ratio": measure.median(several) / measure.median(seconds[0]),
            "growth": None if now is None or memory[0] is None else now - memory[0],
        }
        for length, several, now in zip(writers, seconds, memory, strict=True)
    ]
    return rows, {}


def run(arguments: options.Sample) -> Row:
    """The tables asked for."""
    about = measure.heading(f"Decoding, {arguments.layers} layers, temperature {TEMPERATURE}", arguments)
    return {"conditions": about, **{part: REPORTS[part](arguments) for part in arguments.parts or REPORTS}}


def report_peers(arguments: options.Sample) -> list[Row]:
    """Print and return the table of each width."""
    rows: list[Row] = []
    for width in arguments.widths:
        rows += (these := compare(width, arguments))
        print(f"\nbatch 1, width {width}")
        header = ("", "parameters", "characters/s", "[min-max]", "x chain", "x minGRU-pytorch", "x nanoGPT")
        measure.print_table(header, these, peer_row)
    return rows


def report_batch(arguments: options.Sample) -> list[Row]:
    """Print and return the table of many samples over one."""
    _, rows = measure.prepare(
        {f"ours, {each}": functools.partial(compare_batches, each, arguments) for each in get_args(Weights)}
    )
    print(f"\nbatch {arguments.batch} over batch 1, width {arguments.widths[0]}, characters/s of all together")
    many = (f"batch {arguments.batch}", "[min-max]", "ratio", "GFLOP/s", "of sgemm", "of peak")
    header = ("", "batch 1", "[min-max]", *many)
    measure.print_table(header, rows, batch_row)
    return rows


def report_length(arguments: options.Sample) -> list[Row]:
    """Print and return the table of what was generated before."""
    made, rows = measure.prepare({name: functools.partial(grow, name, arguments) for name in arguments.mixers})
    rows = [each for row in rows for each in made.get(row["name"], [row])]
    print(f"\nafter so many characters, batch 1, width {arguments.widths[0]}; attention's window {arguments.window}")
    measure.print_table(("", "generated", "ms per character", "ratio", "memory growth MB"), rows, length_row)
    return rows


REPORTS = {"peers": report_peers, "batch": report_batch, "length": report_length}


def rate(speeds: list[float]) -> tuple[str, str]:
    """Median and range, in characters per second."""
    return f"{measure.median(speeds):,.0f}", f"[{min(speeds):,.0f}-{max(speeds):,.0f}]"


def peer_row(row: Row) -> tuple[str, ...]:
    """The cells of a contender at batch 1."""
    ratios = (number(row[key], ".2f" if key == "chain" else ".1f") for key in ("chain", "minlm", "nanogpt"))
    return f"{row['parameters']:,}", *rate(row["speeds"]), *ratios


def batch_row(row: Row) -> tuple[str, ...]:
    """The cells of one kind of weights."""
    shares = (number(row[key], ".0%") for key in ("of_sgemm", "of_peak"))
    limits = f"{row['flops_per_second'] / 1e9:.0f}", *shares
    return *rate(row["one"]), *rate(row["many"]), number(row["ratio"], ".1f"), *limits


def length_row(row: Row) -> tuple[str, ...]:
    """The cells of a mixer at one length."""
    growth = None if row["growth"] is None else row["growth"] / 1e6
    return f"{row['generated']:,}", measure.spread(row["seconds"]), number(row["ratio"], ".3f"), number(growth, ".1f")
