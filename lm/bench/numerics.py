"""Relative error of values and gradients against float64 at growing length: our backends, the paper's log-space form.

All get the same projection and the same positive initial state (the log-space form cannot have zero). The measure is
our plain torch path in float64, which is itself compared with a loop first.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lm.bench import measure, options, peers
from lm.bench.measure import Row
from lm.recurrence import reference

SHORT = 48
PARTS = ("values", "gradient", "gradient of h0")
PANELS: list[measure.PanelSpec] = [
    ("error of the values", "relative error", lambda row: row["values"]),
    ("error of the gradient", "relative error", lambda row: row["gradient"]),
]
LOG_SPACE = {"mingru": reference.mingru_log_space, "minlstm": reference.minlstm_log_space}
LOOPS: dict[str, Callable[..., Tensor]] = {
    "mingru": lambda *inputs: reference.mingru_scan(*inputs)[0],
    "minlstm": lambda *inputs: reference.minlstm_scan(*inputs)[0],
}
Form = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
"""Gradient of h, projection and h0 -> h (B, T, D), gradient of the projection, gradient of h0."""


def forms(kind: str, device: torch.device) -> dict[str, Form]:
    """The contenders by name: ours per backend, and the paper's log-space form."""
    ours = partial(peers.gradients, peers.SCANS[kind])
    found: dict[str, Form] = {f"ours, {label}": partial(ours, name) for label, name in peers.backends(device).items()}
    return found | {"log-space": partial(peers.gradients, LOG_SPACE[kind], None)}


def make_inputs(kind: str, T: int, arguments: options.Numerics) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of h (1, T, D), projection (1, T, parts * D), h0 (1, D)."""
    device, dtype = measure.device_and_type(arguments)
    torch.manual_seed(0)
    D = arguments.width
    shapes = (1, T, peers.CELLS[kind] * D), (1, D), (1, T, D)
    projection, h0, grad_h = (torch.randn(shape, device=device) for shape in shapes)
    return grad_h.to(dtype), projection.to(dtype).requires_grad_(), (h0.abs() + 0.1).to(dtype).requires_grad_()


def checked(kind: str, form: Form, arguments: options.Numerics) -> tuple[Form, Row]:
    """A form that equals, at a short length, the loop in float64, as the measure does. Raises RefusedError."""
    short = make_inputs(kind, SHORT, arguments)
    grad_h, *wide = (x.detach().double() for x in short)
    loop = peers.gradients(LOOPS[kind], None, grad_h, *(x.requires_grad_() for x in wide))
    _, dtype = measure.device_and_type(arguments)
    for part, got, measured, want in zip(PARTS, form(*short), peers.truth(kind, *short), loop, strict=True):
        measure.require_equal(f"{part} of float64", measured, want, measure.TOLERANCE[torch.float64])
        measure.require_equal(part, got, want, measure.TOLERANCE[dtype])
    return form, {}


def errors(kind: str, form: Form, T: int, arguments: options.Numerics) -> dict[str, float]:
    """Of values, gradient, and gradient of h0, at one length."""
    inputs = make_inputs(kind, T, arguments)
    pairs = zip(PARTS, form(*inputs), peers.truth(kind, *inputs), strict=True)
    return {part: measure.relative_error(got, want) for part, got, want in pairs}


def run(arguments: options.Numerics) -> Row:
    """All forms at all lengths."""
    about = measure.heading("Relative error against float64", arguments)
    device, _ = measure.device_and_type(arguments)
    points: list[Row] = []
    skipped: list[Row] = []
    for kind in arguments.cells:
        makers = {name: partial(checked, kind, form, arguments) for name, form in forms(kind, device).items()}
        made, rows = measure.prepare(makers, cell=kind)
        for name, form in made.items():
            for T in sorted(arguments.lengths):
                points.append({"name": name, "cell": kind, "T": T, **errors(kind, form, T, arguments)})
        ended = [row for row in rows if "skipped" in row]
        show(kind, [row for row in points if row["cell"] == kind], ended)
        skipped += ended
    if arguments.plot:
        named = [{**row, "name": f"{row['cell']}, {row['name']}"} for row in points]
        measure.draw(arguments.plot, named, f"{arguments.dtype} against float64", PANELS)
    return {"conditions": about, "results": points, "skipped": skipped}


def show(kind: str, points: list[Row], skipped: list[Row]) -> None:
    """The table of one cell: values / gradient."""
    names = list(dict.fromkeys(row["name"] for row in points))
    cells = {(row["name"], row["T"]): f"{row['values']:.1e} / {row['gradient']:.1e}" for row in points}
    lengths = sorted({row["T"] for row in points})
    print(f"\n{kind}: error of values / of the projection's gradient")
    rows = [{"name": f"{T:,}", "cells": [cells[name, T] for name in names]} for T in lengths]
    measure.print_table(("T", *names), rows + skipped, lambda row: row["cells"])
