"""What the benchmarks share: checks of equivalence, timing in turns, limits of the machine, tables."""

import contextlib
import gc
import importlib.metadata
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lm.bench.options import OnDevice
from lm.files import UserError
from lm.report.format import align
from lm.runs.environment import processor_name

Call = Callable[[], object]
Row = dict[str, Any]
Made = TypeVar("Made")

FLOOR = 0.02
"""Seconds that one timing takes at least: a faster call is repeated and its mean taken."""
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Relative error up to which two results count as equal. Wider than in the tests: other code may round elsewhere."""
ENOUGH = 0.9
"""Share of the time for which a measurement must have had the CPU. Several threads can hide a smaller loss."""
WARNINGS: list[str] = []
"""Warnings about the timings of this process; they go into the JSON."""
ALLOCATORS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "OMP_", "LM_BACKEND", "PYTORCH_")
"""Environment variables that change what memory or threads cost."""


class RefusedError(Exception):
    """Why a contender is not timed: it is missing, cannot run here, or computes something else."""


def relative_error(got: Tensor, want: Tensor) -> float:
    """In the Euclidean norm, computed in float64; infinite if there is a NaN."""
    got, want = got.detach().double(), want.detach().double()
    error = ((got - want).norm() / want.norm().clamp_min(1e-30)).item()
    return math.inf if math.isnan(error) else error


def require_equal(what: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    """Raises RefusedError if the relative error is larger."""
    error = relative_error(got, want)
    if not error <= tolerance:
        raise RefusedError(f"differs: {what} off by {error:.1e}")


@torch.no_grad()
def require_forward_equals_steps(module: nn.Module, x: Tensor) -> None:
    """`forward` must equal repeated `step`, of a mixer (x (B, T, D)) or a model (x (B, T)). Raises RefusedError."""
    state, steps = module.init_state(x.shape[0]), []  # type: ignore[operator]
    for x_t in x.unbind(1):
        y, state = module.step(x_t, state)  # type: ignore[operator]
        steps.append(y)
    require_equal("forward against steps", module(x)[0], torch.stack(steps, dim=1), TOLERANCE[torch.float32])


def prepare(makers: Mapping[str, Callable[[], tuple[Made, Row]]], **columns: Any) -> tuple[dict[str, Made], list[Row]]:
    """Make the contenders.

    Args:
        makers: by name; each returns what is to be timed and columns of its row, or raises an error.
        columns: of all rows.

    Returns:
        Those that were made, by name; and the rows, with the reason as `skipped` for those that were not.
    """
    made, rows = {}, []
    for name, make in makers.items():
        rows.append({"name": name, **columns})
        try:
            made[name], more = make()
            rows[-1] |= more
        except (RefusedError, RuntimeError, NotImplementedError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            rows[-1]["skipped"] = reason if isinstance(error, RefusedError) else f"fails: {reason[:120]}"
    return made, rows


def precision(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Autocast for types of 16 bits, as a user would run them; nothing for others."""
    return torch.autocast(device.type, dtype) if dtype.itemsize == 2 else contextlib.nullcontext()


def seconds(call: Call, device: torch.device, times: int = 1) -> float:
    """The mean of so many calls in a row, waiting for the device."""
    finish(device)
    start = time.perf_counter()
    for _ in range(times):
        call()
    finish(device)
    return (time.perf_counter() - start) / times


def finish(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(
    calls: Mapping[str, Call], repeat: int, device: torch.device, starved: bool = False
) -> dict[str, list[float]]:
    """Seconds of each call, `repeat` times. A round runs them all, so that a disturbance does not hit one alone, and
    each begins another round, since the first call pays for garbage collection and cold caches.

    Warns when others took the CPU, unless `starved` says that this is meant.
    """
    often = {name: _warm_up(call, device) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    wall, busy = time.perf_counter(), time.process_time()
    names = list(calls)
    for turn in range(repeat):
        gc.collect()
        first = turn % max(1, len(names))
        for name in names[first:] + names[:first]:
            times[name].append(seconds(calls[name], device, often[name]))
    if not starved:
        _warn_if_starved(time.perf_counter() - wall, time.process_time() - busy)
    return times


def _warn_if_starved(wall: float, busy: float) -> None:
    """Warn if this process did not have the CPU: it never waits by itself, so that others must have taken it.

    Then even ratios are wrong: a slow contender is interrupted more often than a fast one.
    """
    if busy < ENOUGH * wall:
        warning = f"others took the CPU: it was ours for {busy / wall:.0%} of the time. These timings mean nothing."
        WARNINGS.append(warning)
        print(f"WARNING: {warning}", file=sys.stderr, flush=True)


def _warm_up(call: Call, device: torch.device) -> int:
    """How often the call fits into FLOOR. Its first run, which builds and allocates, is not counted."""
    if seconds(call, device) > FLOOR and device.type == "cpu":
        return 1
    return max(1, math.ceil(FLOOR / max(seconds(call, device), 1e-7)))


def copy_call(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Call:
    """Copy a tensor into another that exists: the memory's limit."""
    source, target = (torch.ones(shape, dtype=dtype, device=device) for _ in range(2))
    return lambda: target.copy_(source)


def gemm_call(n: int, dtype: torch.dtype, device: torch.device) -> Call:
    """Multiply two n x n matrices, 2 n^3 operations: the arithmetic's limit."""
    a, b, out = (torch.randn(n, n, device=device).to(dtype) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


def device_and_type(options: OnDevice) -> tuple[torch.device, torch.dtype]:
    """--device and --dtype. Raises UserError for a device that is not here."""
    name = options.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no such device here")
    return torch.device(name), getattr(torch, getattr(options, "dtype", "float32"))


def sizes(words: Iterable[str], axes: str) -> list[tuple[int, ...]]:
    """["64x256x768"] -> [(64, 256, 768)]. Raises UserError where a word has not one whole number per axis."""
    result = []
    for word in words:
        numbers = word.lower().split("x")
        if len(numbers) != len(axes) or not all(number.isdecimal() and int(number) for number in numbers):
            raise UserError(f"--sizes: expected {'x'.join(axes)} with whole numbers, not {word}")
        result.append(tuple(map(int, numbers)))
    return result


def heading(title: str, options: OnDevice, precision: str = "") -> Row:
    """Print what is measured and where. Returns what the numbers depend on, for the JSON.

    Args:
        precision: stands in place of --dtype, where the type is no option of the benchmark.
    """
    device, dtype = device_and_type(options)
    installed = {package.name: package.version for package in importlib.metadata.distributions()}
    about = {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "device": device.type,
        "dtype": precision or str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "peers": {package: installed.get(package) for package in ("minGRU-pytorch", "mambapy")},
        "environment": {key: os.environ[key] for key in sorted(os.environ) if key.startswith(ALLOCATORS)},
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "options": dict(sorted(vars(options).items())),
    }
    where = f"{about['machine']}, {about['threads']} threads, {about['dtype']}, torch {about['torch']}"
    print(f"{title}\n{where}", flush=True)
    return about


def whole(values: Sequence[float]) -> str:
    """Whole numbers: median [min-max]."""
    return f"{median(values):,.0f} [{min(values):,.0f}-{max(values):,.0f}]"


def spread(times: Sequence[float]) -> str:
    """Milliseconds: median [min-max]."""
    middle, low, high = (1000 * value for value in (median(times), min(times), max(times)))
    digits = 1 if middle >= 10 else 3
    return f"{middle:,.{digits}f} [{low:,.{digits}f}-{high:,.{digits}f}]"


def print_table(header: Sequence[str], rows: Iterable[Row], cells: Callable[[Row], Sequence[str]]) -> None:
    """Print a row per contender: its name, and its cells or why it was skipped."""
    lines = [[row["name"], *([row["skipped"]] if "skipped" in row else cells(row))] for row in rows]
    print("\n".join(align([header, *lines], left=1, rule=False)), end="\n\n", flush=True)


PanelSpec = tuple[str, str, Callable[[Row], float]]
"""Title, label of the y axis, and value of a row."""


def draw(path: str, points: list[Row], title: str, panels: list[PanelSpec]) -> None:
    """Draw values over sequence length, a curve per name; on logarithmic axes, where 0 and less have no place."""
    from lm.report.plot import Curve, Panel, save

    drawn = []
    for heading, label, value in panels:
        curves: dict[str, list[Curve]] = {}
        for name in dict.fromkeys(row["name"] for row in points):
            curves[name] = [[(row["T"], y) for row in points if row["name"] == name and (y := value(row)) > 0]]
        drawn.append(Panel("sequence length", label, curves, heading))
    save(path, drawn, title, scales=("log", "log"))
