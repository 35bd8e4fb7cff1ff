"""One cell, forward and forward + backward, from its projection to the gradient of its projection.

Compared at a short length, where every form is accurate, with our plain torch path in float64; the error of the
gradient at full length is a column, because some peers lose all their digits there. `copies` is the time over that of
copying one (B, T, D) tensor. `bandwidth` is the rate at which the bytes that a fused cell must move would pass, over
that of the copy (forward: projection in, h out; backward: projection, h and its gradient in, one gradient out).
"""

import itertools
from functools import partial

import torch
from torch import Tensor

from lm.bench import measure, options, peers
from lm.bench.measure import RefusedError, Row
from lm.report.format import number

SHORT = (2, 64, 32)
"""(B, T, D) of the check. A power of two, which some peers need."""
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

    @torch.no_grad()
    def forward(self) -> Tensor:
        """h."""
        with peers.backend(self.backend), measure.precision(self.projection.device, self.projection.dtype):
            return self.call(self.projection)

    def train(self) -> tuple[Tensor, ...]:
        """h and the gradient of the projection, in the contender's order."""
        return peers.gradients(self.call, self.backend, self.grad_h, self.projection)

    def results(self) -> tuple[Tensor, Tensor]:
        """h and the gradient of the projection, in our order."""
        h, grad = self.train()
        return h, grad.roll(-self.shift, -1)


def inputs(kind: str, size: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A random projection and incoming gradient."""
    B, T, D = size
    torch.manual_seed(0)
    projection = torch.randn(B, T, peers.CELLS[kind] * D, device=device)
    return projection.to(dtype), torch.randn(B, T, D, device=device).to(dtype)


def check(name: str, kind: str, T: int, arguments: options.Cell) -> None:
    """Refuse a contender that differs at the short length, or would take too long at length T. Raises RefusedError."""
    device, dtype = measure.device_and_type(arguments)
    if name == peers.LOOP and arguments.longest_loop < T:
        raise RefusedError(f"not at T > {arguments.longest_loop}: too slow (--longest_loop)")
    projection, grad_h = inputs(kind, SHORT, device, dtype)
    results = Cell(peers.contenders(kind, device)[name], projection, grad_h).results()
    for what, got, want in zip(("values", "gradient"), results, peers.truth(kind, grad_h, projection), strict=True):
        measure.require_equal(what, got, want, measure.TOLERANCE[dtype])


def prepare(kind: str, size: tuple[int, ...], arguments: options.Cell) -> tuple[dict[str, Cell], list[Row]]:
    """All contenders at full size, checked, and a row for each with the error of its gradient."""
    device, dtype = measure.device_and_type(arguments)
    projection, grad_h = inputs(kind, size, device, dtype)
    exact = peers.truth(kind, grad_h, projection)[1]

    def make(name: str, contender: peers.Contender) -> tuple[Cell, Row]:
        check(name, kind, size[1], arguments)
        cell = Cell(contender, projection, grad_h)
        return cell, {"gradient_error": measure.relative_error(cell.results()[1], exact)}

    makers = {name: partial(make, name, contender) for name, contender in peers.contenders(kind, device).items()}
    return measure.prepare(makers, cell=kind, size=size)


def compare(kind: str, size: tuple[int, ...], arguments: options.Cell) -> tuple[list[float], list[Row]]:
    """The times of a copy, and one row per contender."""
    device, dtype = measure.device_and_type(arguments)
    cells, rows = prepare(kind, size, arguments)
    calls: dict[str, measure.Call] = {"copy": measure.copy_call(size, dtype, device)}
    for name, cell in cells.items():
        calls |= {f"{name} forward": cell.forward, f"{name} both": cell.train}
    times = measure.in_turns(calls, arguments.repeat, device)
    known, moved = times.get(f"{peers.YARDSTICK} both"), (3 * peers.CELLS[kind] + 3) / 2  # copies: two tensors each
    for row in rows:
        if "skipped" not in row:
            row |= {part: times[f"{row['name']} {part}"] for part in ("forward", "both")}
            seconds = measure.median(row["both"])
            copies = seconds / measure.median(times["copy"])
            speedup = measure.median(known) / seconds if known else None
            row |= {"copies": copies, "bandwidth": moved / copies, "speedup": speedup}
    return times["copy"], rows


def run(arguments: options.Cell) -> Row:
    """All cells at all sizes."""
    about = measure.heading("One cell: projection in, gradient of the projection out", arguments)
    results = []
    for size, kind in itertools.product(measure.sizes(arguments.sizes, "BTD"), arguments.cells):
        copy, rows = compare(kind, size, arguments)
        B, T, D = size
        print(f"\n{kind}, B={B} T={T:,} D={D}; copying one (B, T, D) tensor takes {measure.spread(copy)} ms")
        measure.print_table(HEADER, rows, table_row)
        results.append({"cell": kind, "size": size, "copy": copy, "rows": rows})
    return {"conditions": about, "results": results}


def table_row(row: Row) -> tuple[str, ...]:
    """The cells of a contender's row."""
    return (
        measure.spread(row["forward"]),
        measure.spread(row["both"]),
        number(row["copies"], ".1f"),
        number(row["bandwidth"], ".0%"),
        number(row["speedup"], ".1f"),
        number(row["gradient_error"], ".1e"),
    )
