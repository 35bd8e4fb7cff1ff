"""What the benchmarks share: equivalence, timing in turns, the limits of the machine, tables."""

import contextlib
import gc
import importlib.metadata
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lm.files import UserError

Call = Callable[[], object]
Row = dict[str, Any]

FLOOR = 0.02
"""Seconds that one timing takes at least: a faster call is repeated and its mean taken."""
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Relative error up to which two results are the same. Wider than the laws': a peer may round in places of its own."""


ENOUGH = 0.9
"""Share of the time for which a measurement must have had the CPU. Several threads can hide a smaller loss."""
WARNINGS: list[str] = []
"""What this process said against its own timings; goes into the JSON."""


class RefusedError(Exception):
    """Why something is not timed: it is not there, cannot do it here, or computes something else."""


# ---------------------------------------------------------------- equivalence


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
    """Law 1 of the mixers, on a mixer (x (B, T, D)) or a whole model (x (B, T)). Raises RefusedError."""
    state, steps = module.init_state(x.shape[0]), []  # type: ignore[operator]
    for x_t in x.unbind(1):
        y, state = module.step(x_t, state)  # type: ignore[operator]
        steps.append(y)
    require_equal("forward against steps", module(x)[0], torch.stack(steps, dim=1), TOLERANCE[torch.float32])


# ---------------------------------------------------------------- time


def precision(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """What a user of that type would run in: autocast for half of 32 bits, else nothing."""
    return torch.autocast(device.type, dtype) if dtype.itemsize == 2 else contextlib.nullcontext()


def seconds(call: Call, device: torch.device, times: int = 1) -> float:
    """The mean of so many calls in a row, waiting for the device."""
    _finish(device)
    start = time.perf_counter()
    for _ in range(times):
        call()
    _finish(device)
    return (time.perf_counter() - start) / times


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(
    calls: Mapping[str, Call], repeat: int, device: torch.device, starved: bool = False
) -> dict[str, list[float]]:
    """Seconds of each call, `repeat` times. One round runs them all, so that a disturbance does not hit one alone, and
    each begins another round, since what comes first pays for the collection of garbage and for cold caches.

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
    """A process that never waits by itself has the CPU for all of its time, unless others take it away.

    Then not even ratios hold: a slow contender meets every interruption, a fast one slips between two.
    """
    if busy < ENOUGH * wall:
        warning = f"others took the CPU: it was ours for {busy / wall:.0%} of the time. These timings mean nothing."
        WARNINGS.append(warning)
        print(f"WARNING: {warning}", file=sys.stderr, flush=True)


def _warm_up(call: Call, device: torch.device) -> int:
    """How often the call fits into FLOOR; what its first run builds and allocates is not counted."""
    if seconds(call, device) > FLOOR and device.type == "cpu":
        return 1
    return max(1, math.ceil(FLOOR / max(seconds(call, device), 1e-7)))


def median(times: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(times)


# ---------------------------------------------------------------- limits


def copy_call(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Call:
    """Copy one tensor to another: the memory's limit. Both exist beforehand."""
    source, target = (torch.ones(shape, dtype=dtype, device=device) for _ in range(2))
    return lambda: target.copy_(source)


def gemm_call(n: int, dtype: torch.dtype, device: torch.device) -> Call:
    """Multiply two n x n matrices, 2 n^3 operations: the arithmetic's limit."""
    a, b, out = (torch.randn(n, n, device=device).to(dtype) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


# ---------------------------------------------------------------- arguments


def device_and_type(arguments: SimpleNamespace) -> tuple[torch.device, torch.dtype]:
    """--device and --dtype. Raises UserError for a device that is not here."""
    name = arguments.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no such device here")
    return torch.device(name), getattr(torch, arguments.dtype)


def sizes(words: Iterable[str], axes: str) -> list[tuple[int, ...]]:
    """["64x256x768"] -> [(64, 256, 768)]. Raises UserError where a word has not one whole number per axis."""
    result = []
    for word in words:
        numbers = word.lower().split("x")
        if len(numbers) != len(axes) or not all(number.isdecimal() and int(number) for number in numbers):
            raise UserError(f"--sizes: expected {'x'.join(axes)} with whole numbers, not {word}")
        result.append(tuple(map(int, numbers)))
    return result


def names(asked: Sequence[str] | None, known: Iterable[str], option: str = "--mixers") -> list[str]:
    """Those asked for, or all. Raises UserError for an unknown one."""
    known = list(known)
    for name in asked or ():
        if name not in known:
            raise UserError(f"{option}: {name} is not one of {', '.join(known)}")
    return list(asked or known)


# ---------------------------------------------------------------- report


def conditions(arguments: SimpleNamespace) -> Row:
    """What the numbers depend on: machine, versions, settings, options."""
    device, dtype = device_and_type(arguments)
    return {
        "machine": _machine(device),
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "peers": {package: _version(package) for package in ("minGRU-pytorch", "mambapy")},
        "environment": {key: os.environ[key] for key in sorted(os.environ) if key.startswith(ALLOCATORS)},
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "options": dict(sorted(vars(arguments).items())),
    }


ALLOCATORS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "OMP_", "LM_BACKEND", "PYTORCH_")
"""Settings that change what memory or threads cost."""


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def heading(title: str, arguments: SimpleNamespace) -> Row:
    """Print what is measured and where; returns the conditions for the JSON."""
    about = conditions(arguments)
    print(
        f"{title}\n{about['machine']}, {about['threads']} threads, {about['dtype']}, torch {about['torch']}", flush=True
    )
    return about


def spread(times: Sequence[float]) -> str:
    """Milliseconds: median [min-max]."""
    middle, low, high = (1000 * value for value in (median(times), min(times), max(times)))
    digits = 1 if middle >= 10 else 3
    return f"{middle:,.{digits}f} [{low:,.{digits}f}-{high:,.{digits}f}]"


def number(value: float | None, form: str = ".2f", unit: str = "") -> str:
    """A table's entry, `-` where there is none."""
    return "-" if value is None else f"{value:{form}}{unit}"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns, the first to the left. A row shorter than the header is a name and a remark."""
    full = [header, *(row for row in rows if len(row) == len(header))]
    widths = [max(len(row[i]) for row in full) for i in range(len(header))]
    widths[0] = max([widths[0], *(len(row[0]) for row in rows)])
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0])]
        right = zip(row[1:], widths[1:], strict=False)
        cells += [cell.rjust(width) for cell, width in right] if len(row) == len(header) else row[1:]
        print("  ".join(cells).rstrip())
    print(flush=True)


def skip(name: str, error: Exception) -> Row:
    """The row of a contender that is not timed."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return {"name": name, "skipped": reason if isinstance(error, RefusedError) else f"fails: {reason[:120]}"}


def program(*words: str) -> list[str]:
    """The command of a fresh Python with the same settings."""
    return [sys.executable, *words]
