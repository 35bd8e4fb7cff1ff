"""Relative error of values and gradients against float64 at growing length: our backends, the paper's log-space form.

All get the same projection and the same positive initial state (a logarithm has no room for zero). The measure is our
plain torch path in float64, itself compared first with the loop.
"""

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from lm import recurrence
from lm.bench import measure, peers
from lm.bench.measure import RefusedError, Row
from lm.recurrence import reference

SHORT = 48
Cell = Callable[[Tensor, Tensor], Tensor]
PARTS = ("values", "gradient", "gradient of h0")


def cells(kind: str, device: torch.device) -> dict[str, tuple[Cell, str | None]]:
    """Contenders by name: h (B, T, D) of a projection and h0 (B, D), and the backend to run them under."""
    scan, log_space = {
        "mingru": (recurrence.mingru_scan, reference.mingru_log_space),
        "minlstm": (recurrence.minlstm_scan, reference.minlstm_log_space),
    }[kind]
    ours: dict[str, tuple[Cell, str | None]] = {
        f"ours, {label}": (lambda projection, h0: scan(projection, h0)[0], backend)
        for label, backend in peers.backends(device).items()
    }
    return ours | {"log-space": (log_space, None)}


def results(cell: Cell, backend: str | None, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """h, and the gradients of the projection and of h0."""
    projection, h0, grad_h = inputs
    projection, h0 = (x.detach().requires_grad_() for x in (projection, h0))
    with peers.backend(backend), measure.precision(projection.device, projection.dtype):
        h = cell(projection, h0).to(grad_h.dtype)
        return h, *torch.autograd.grad(h, (projection, h0), grad_h)


def make_inputs(kind: str, T: int, width: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Projection (1, T, parts * D), h0 (1, D), gradient of h (1, T, D)."""
    torch.manual_seed(0)
    shapes = (1, T, peers.CELLS[kind] * width), (1, width), (1, T, width)
    projection, h0, grad_h = (torch.randn(shape, device=device) for shape in shapes)
    return projection.to(dtype), (h0.abs() + 0.1).to(dtype), grad_h.to(dtype)


def truth(kind: str, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """By our plain torch path in float64."""
    scan = {"mingru": recurrence.mingru_scan, "minlstm": recurrence.minlstm_scan}[kind]
    projection, h0, grad_h = (x.double().requires_grad_() for x in inputs)
    with peers.backend("portable"):
        h = scan(projection, h0)[0]
        return h, *torch.autograd.grad(h, (projection, h0), grad_h)


def check(kind: str, name: str, arguments: SimpleNamespace) -> None:
    """At a short length all forms agree, and the measure with the loop. Raises RefusedError."""
    device, dtype = measure.device_and_type(arguments)
    short = make_inputs(kind, SHORT, arguments.width, device, dtype)
    loop = {"mingru": reference.mingru_scan, "minlstm": reference.minlstm_scan}[kind]
    wide = tuple(x.double() for x in short)
    want = results(lambda projection, h0: loop(projection, h0)[0], None, wide)
    got = results(*cells(kind, device)[name], short)
    for part, value, measured, expected in zip(PARTS, got, truth(kind, short), want, strict=True):
        measure.require_equal(f"{part} of float64", measured, expected, measure.TOLERANCE[torch.float64])
        measure.require_equal(part, value, expected, measure.TOLERANCE[dtype])


def errors(kind: str, name: str, T: int, arguments: SimpleNamespace) -> list[float]:
    """Of values, gradient, and gradient of h0, at one length."""
    device, dtype = measure.device_and_type(arguments)
    inputs = make_inputs(kind, T, arguments.width, device, dtype)
    pairs = zip(results(*cells(kind, device)[name], inputs), truth(kind, inputs), strict=True)
    return [measure.relative_error(got, want) for got, want in pairs]


def run(arguments: SimpleNamespace) -> Row:
    """All forms at all lengths."""
    about = measure.heading("Relative error against float64", arguments)
    device, _ = measure.device_and_type(arguments)
    points, skipped = [], []
    for kind in measure.names(arguments.cells, peers.CELLS, "--cells"):
        for name in cells(kind, device):
            try:
                check(kind, name, arguments)
            except (RefusedError, RuntimeError) as error:
                skipped.append({**measure.skip(name, error), "cell": kind})
                continue
            for T in sorted(arguments.lengths):
                named = dict(zip(PARTS, errors(kind, name, T, arguments), strict=True))
                points.append({"name": name, "cell": kind, "T": T, **named})
        show(kind, points, skipped)
    if arguments.plot:
        draw(points, arguments)
    return {"conditions": about, "results": points, "skipped": skipped}


def show(kind: str, points: list[Row], skipped: list[Row]) -> None:
    """The table of one cell: values / gradient."""
    points = [row for row in points if row["cell"] == kind]
    names = list(dict.fromkeys(row["name"] for row in points))
    cell = {(row["name"], row["T"]): f"{row['values']:.1e} / {row['gradient']:.1e}" for row in points}
    lines = [(f"{T:,}", *(cell[name, T] for name in names)) for T in sorted({row["T"] for row in points})]
    print(f"\n{kind}: error of values / of the projection's gradient")
    measure.print_table(("T", *names), lines + [(r["name"], r["skipped"]) for r in skipped if r["cell"] == kind])


def draw(points: list[Row], arguments: SimpleNamespace) -> None:
    """Values on the left, gradients on the right."""
    from lm.report import plot

    panels = []
    for part in PARTS[:2]:
        curves: dict[str, plot.Curve] = {}
        for row in points:
            curves.setdefault(f"{row['cell']}, {row['name']}", []).append((row["T"], row[part]))
        panels.append(plot.Panel(f"error of the {part}", "relative error", curves))
    plot.save(arguments.plot, panels, "sequence length", f"{arguments.dtype} against float64")
