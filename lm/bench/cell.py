"""One cell, forward and forward + backward, from its projection to the gradient of its projection.

Compared at a short length, where every form is accurate, against our plain torch path in float64; the error of the
gradient at full length is a column, because some peers lose all their digits there. `copies` is the time over that of
copying one (B, T, D) tensor. `bandwidth` is the share of the copy's bandwidth at which the bytes that a fused cell must
move would pass (forward: projection in, h out; backward: projection, h and its gradient in, one gradient out).
"""

from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor

from lm.bench import measure, peers
from lm.bench.measure import RefusedError, Row
from lm.recurrence import portable

SHORT = (2, 64, 32)
"""(B, T, D) of the check. A power of two, which some peers need."""
Full = tuple[Tensor, Tensor, Tensor]
"""Projection, gradient of h, and the true gradient of the projection."""
HEADER = ("", "forward ms", "forward + backward ms", "copies", "bandwidth", f"x {peers.YARDSTICK}", "gradient error")


class Cell:
    """A contender with its inputs laid out as it reads them.

    Args:
        projection: (B, T, parts * D) in our order. grad_h: (B, T, D), the gradient that comes in.
    """

    def __init__(self, contender: peers.Contender, projection: Tensor, grad_h: Tensor) -> None:
        self.call, self.backend, self.grad_h = contender.make(), contender.backend, grad_h
        self.shift = grad_h.shape[-1] if contender.candidate_first else 0
        self.projection = projection.roll(self.shift, -1).requires_grad_()
        self.precision = partial(measure.precision, projection.device, projection.dtype)

    @torch.no_grad()
    def forward(self) -> Tensor:
        with peers.backend(self.backend), self.precision():
            return self.call(self.projection)

    def train(self) -> tuple[Tensor, Tensor]:
        """h and the gradient of the projection, in the contender's order."""
        with peers.backend(self.backend):
            with self.precision():
                h = self.call(self.projection).to(self.grad_h.dtype)
            return h, torch.autograd.grad(h, self.projection, self.grad_h)[0]

    def results(self) -> tuple[Tensor, Tensor]:
        """h and the gradient of the projection, in our order."""
        h, grad = self.train()
        return h, grad.roll(-self.shift, -1)


def truth(projection: Tensor, grad_h: Tensor) -> tuple[Tensor, Tensor]:
    """h and the gradient of the projection by our plain torch path in float64."""
    projection, grad_h = projection.double(), grad_h.double()
    kind, grad = portable.Kind(projection.shape[-1] // grad_h.shape[-1] - 1), torch.empty_like(projection)
    h, last = portable.scan_forward(kind, (projection,), None)
    portable.scan_backward(kind, (projection,), (grad,), h, None, grad_h, torch.zeros_like(last))
    return h, grad


def inputs(kind: str, size: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A random projection and incoming gradient."""
    B, T, D = size
    torch.manual_seed(0)
    projection = torch.randn(B, T, peers.CELLS[kind] * D, device=device)
    return projection.to(dtype), torch.randn(B, T, D, device=device).to(dtype)


def prepare(name: str, kind: str, size: tuple[int, ...], arguments: SimpleNamespace, full: Full) -> tuple[Cell, Row]:
    """The contender at full size, checked, and its row with its error. Raises RefusedError."""
    device, dtype = measure.device_and_type(arguments)
    contender = peers.contenders(kind, device)[name]
    if name == peers.LOOP and size[1] > arguments.longest_loop:
        raise RefusedError(f"not at T > {arguments.longest_loop}: too slow (--longest_loop)")
    short = inputs(kind, SHORT, device, dtype)
    results = Cell(contender, *short).results()
    for what, got, want in zip(("values", "gradient"), results, truth(*short), strict=True):
        measure.require_equal(what, got, want, measure.TOLERANCE[dtype])
    cell = Cell(contender, *full[:2])
    error = measure.relative_error(cell.results()[1], full[2])
    return cell, {"name": name, "cell": kind, "size": size, "gradient_error": error}


def compare(kind: str, size: tuple[int, ...], arguments: SimpleNamespace) -> tuple[list[float], list[Row]]:
    """The times of a copy, and one row per contender."""
    device, dtype = measure.device_and_type(arguments)
    projection, grad_h = inputs(kind, size, device, dtype)
    full = projection, grad_h, truth(projection, grad_h)[1]
    rows: list[Row] = []
    cells: dict[str, Cell] = {}
    for name in peers.contenders(kind, device):
        try:
            cells[name], row = prepare(name, kind, size, arguments, full)
        except (RefusedError, RuntimeError, NotImplementedError) as error:
            row = {**measure.skip(name, error), "cell": kind, "size": size}
        rows.append(row)
    calls: dict[str, measure.Call] = {"copy": measure.copy_call(size, dtype, device)}
    for name, cell in cells.items():
        calls |= {f"{name} forward": cell.forward, f"{name} both": cell.train}
    times = measure.in_turns(calls, arguments.repeat, device)
    for row in rows:
        if "skipped" not in row:
            row |= {"forward": times[f"{row['name']} forward"], "both": times[f"{row['name']} both"]}
    add_ratios(rows, times["copy"], peers.CELLS[kind])
    return times["copy"], rows


def add_ratios(rows: list[Row], copy: list[float], parts: int) -> None:
    """Copies, share of bandwidth, and speed-up over the peer that all know."""
    known = next(
        (measure.median(row["both"]) for row in rows if row["name"] == peers.YARDSTICK and "both" in row), None
    )
    tensors = 3 * parts + 3
    for row in rows:
        if "both" in row:
            seconds = measure.median(row["both"])
            row["copies"] = seconds / measure.median(copy)
            row["bandwidth"] = tensors / 2 / row["copies"]
            row["speedup"] = None if known is None else known / seconds


def run(arguments: SimpleNamespace) -> Row:
    """All cells at all sizes."""
    about = measure.heading("One cell: projection in, gradient of the projection out", arguments)
    results = []
    for size in measure.sizes(arguments.sizes, "BTD"):
        for kind in measure.names(arguments.cells, peers.CELLS, "--cells"):
            copy, rows = compare(kind, size, arguments)
            B, T, D = size
            print(f"\n{kind}, B={B} T={T:,} D={D}; copying one (B, T, D) tensor takes {measure.spread(copy)} ms")
            measure.print_table(HEADER, [table_row(row) for row in rows])
            results.append({"cell": kind, "size": size, "copy": copy, "rows": rows})
    return {"conditions": about, "results": results}


def table_row(row: Row) -> tuple[str, ...]:
    """A row as the table shows it."""
    if "skipped" in row:
        return row["name"], row["skipped"]
    return (
        row["name"],
        measure.spread(row["forward"]),
        measure.spread(row["both"]),
        measure.number(row["copies"], ".1f"),
        measure.number(row["bandwidth"], ".0%"),
        measure.number(row["speedup"], ".1f"),
        measure.number(row["gradient_error"], ".1e"),
    )
