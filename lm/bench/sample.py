"""Characters per second of decoding one text by `model.step`, per mixer, after some context has been read.

The limit is the chain of matrix-vector products alone: every matrix of the model but the embedding, once per
character. Attention's window is all that it has read and writes, but at least 256: it forgets nothing.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from lm.bench import measure, models
from lm.bench.measure import RefusedError, Row
from lm.mixers import MIXERS
from lm.model import LanguageModel
from lm.sampling import PREFILL

VOCABULARY = 65
HEADER = ("", "characters/s", "[min-max]", "of the products alone")


class Decoder:
    """A model that has read `context` characters and writes the most probable ones, `chars` in one call."""

    def __init__(self, model: LanguageModel, context: int, chars: int) -> None:
        self.model, self.chars = model, chars
        device = model.head.weight.device
        self.ids = torch.zeros(1, dtype=torch.int64, device=device)
        self.state = self.read(torch.randint(VOCABULARY, (1, context), device=device))

    @torch.inference_mode()
    def read(self, ids: Tensor) -> Any:
        state = self.model.init_state(1)
        for chunk in ids.split(PREFILL, dim=1) if ids.shape[1] else ():
            _, state = self.model(chunk, state)
        return state

    @torch.inference_mode()
    def __call__(self) -> None:
        """Always from the same state: nobody reads more than was asked for."""
        ids, state = self.ids, self.state
        for _ in range(self.chars):
            logits, state = self.model.step(ids, state)
            ids = logits.argmax(dim=-1)


class Products:
    """The matrix-vector products of one model, one after the other."""

    def __init__(self, model: LanguageModel, chars: int) -> None:
        blocks = [p for p in model.blocks.parameters() if p.dim() == 2]  # type: ignore[attr-defined]
        self.chars = chars
        self.pairs = [(w, torch.ones(1, w.shape[1], device=w.device)) for w in (*blocks, model.head.weight)]

    @torch.inference_mode()
    def __call__(self) -> None:
        for _ in range(self.chars):
            for weight, x in self.pairs:
                linear(x, weight)


def make(name: str, context: int, arguments: SimpleNamespace) -> LanguageModel:
    """A model in the type asked for, whose window holds the context and what is written. Raises RefusedError."""
    device, dtype = measure.device_and_type(arguments)
    window = max(256, context + arguments.chars)
    model = models.make(name, arguments.width, arguments.layers, VOCABULARY, window=window).to(device).eval()
    measure.require_forward_equals_steps(model, torch.randint(VOCABULARY, (1, 24), device=device))
    return model.to(dtype)


def compare(context: int, arguments: SimpleNamespace) -> list[Row]:
    """One row per mixer."""
    device, _ = measure.device_and_type(arguments)
    rows: list[Row] = []
    calls: dict[str, measure.Call] = {}
    for name in measure.names(arguments.mixers, MIXERS):
        try:
            model = make(name, context, arguments)
            calls[name] = Decoder(model, context, arguments.chars)
            calls[f"{name} products"] = Products(model, arguments.chars)
            rows.append({"name": name, "context": context})
        except (RefusedError, RuntimeError) as error:
            rows.append({**measure.skip(name, error), "context": context})
    times = measure.in_turns(calls, arguments.repeat, device)
    for row in rows:
        if "skipped" not in row:
            row["speeds"] = [arguments.chars / seconds for seconds in times[row["name"]]]
            limit = arguments.chars / measure.median(times[f"{row['name']} products"])
            row |= {"products": limit, "of_products": measure.median(row["speeds"]) / limit}
    return rows


def run(arguments: SimpleNamespace) -> Row:
    """All mixers after each context."""
    about = measure.heading(f"Decoding, batch 1, {arguments.layers} layers of width {arguments.width}", arguments)
    results = []
    for context in arguments.contexts:
        rows = compare(context, arguments)
        print(f"\nafter {context:,} characters")
        measure.print_table(HEADER, [table_row(row) for row in rows])
        results.append({"context": context, "rows": rows})
    return {"conditions": about, "results": results}


def table_row(row: Row) -> tuple[str, ...]:
    """A row as the table shows it."""
    if "skipped" in row:
        return row["name"], row["skipped"]
    low, middle, high = min(row["speeds"]), measure.median(row["speeds"]), max(row["speeds"])
    return row["name"], f"{middle:,.0f}", f"[{low:,.0f}-{high:,.0f}]", measure.number(row["of_products"], ".0%")
