"""Time and peak memory of training one mixer (forward + backward) against sequence length, as in the paper's figure.

Memory is that of a fresh process in which nothing else ran, above what it had before the step; there a mixer also
shows whether the next length is worth waiting for. Attention sees the whole sequence.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from lm.bench import measure, models
from lm.bench.measure import RefusedError, Row
from lm.mixers import MIXERS, Mixer

BASELINES = ("gru_reference", "gru", "lstm_reference", "lstm")
ROOT = Path(__file__).parents[2]
Size = tuple[int, int, int]


class Step:
    """Forward and backward of one mixer: gradients of its input and of all its weights."""

    def __init__(self, mixer: Mixer, size: Size, device: torch.device, dtype: torch.dtype) -> None:
        self.mixer, self.dtype, self.parameters = mixer, dtype, list(mixer.parameters())
        self.x = torch.randn(size, device=device, requires_grad=True)
        self.grad_y = torch.randn(size, device=device).to(dtype)

    def __call__(self) -> tuple[Tensor, ...]:
        with measure.precision(self.x.device, self.dtype):
            y, _ = self.mixer(self.x)
        # Not all weights matter at T = 1, where the warm-up may be: the recurrent ones only meet a zero state.
        return torch.autograd.grad(y.to(self.dtype), [self.x, *self.parameters], self.grad_y, allow_unused=True)


def make(name: str, T: int, arguments: SimpleNamespace) -> Mixer:
    """A mixer for sequences of length T."""
    device, _ = measure.device_and_type(arguments)
    options = {"expansion": arguments.expansion, "convolution": arguments.convolution, "window": T}
    return models.make_mixer(name, arguments.width, **options).to(device)


def require_equal(name: str, arguments: SimpleNamespace) -> None:
    """Forward must equal steps. Raises RefusedError."""
    device, _ = measure.device_and_type(arguments)
    x = torch.randn(2, 24, arguments.width, device=device)
    measure.require_forward_equals_steps(make(name, 24, arguments), x)


# ---------------------------------------------------------------- memory, in a process of its own


def peak_of_one_step(name: str, T: int, arguments: SimpleNamespace) -> Row:
    """Bytes that one training step adds at its peak, input included, and the seconds it takes (once, cold)."""
    device, dtype = measure.device_and_type(arguments)
    mixer = make(name, T, arguments)
    Step(mixer, (1, 8, arguments.width), device, dtype)()  # libraries, thread pools and kernels are not its memory
    before = reset_peak(device)
    step = Step(mixer, (arguments.batch, T, arguments.width), device, dtype)
    start = time.perf_counter()
    step()
    peak = peak_bytes(device)
    return {"seconds": time.perf_counter() - start, "bytes": peak - before}


def reset_peak(device: torch.device) -> int:
    """Start to measure the peak anew where the system can; returns the bytes in use."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes(device)


def peak_bytes(device: torch.device) -> int:
    """The most that this process had in memory since `reset_peak`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # ru_maxrss would start from that of the process that launched this one
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure_apart(name: str, T: int, arguments: SimpleNamespace) -> Row:
    """`peak_of_one_step` in a fresh process. Raises RefusedError if it does not live through it."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from lm.bench import length; length.child(sys.argv[1])"
    task = json.dumps({"name": name, "T": T, "arguments": vars(arguments)})
    child = subprocess.run(measure.program("-c", code, task), capture_output=True, text=True)
    if child.returncode:
        reason = (child.stderr.strip().splitlines() or [f"ended with code {child.returncode}; out of memory?"])[-1]
        raise RefusedError(f"T = {T:,}: {reason}")
    return json.loads(child.stdout.splitlines()[-1])


def child(task: str) -> None:
    """The whole life of that process: one task in, one line of JSON out."""
    words = json.loads(task)
    print(json.dumps(peak_of_one_step(words["name"], words["T"], SimpleNamespace(**words["arguments"]))))


# ---------------------------------------------------------------- time


def run(arguments: SimpleNamespace) -> Row:
    """All mixers at all lengths, each until it takes too long."""
    B, D = arguments.batch, arguments.width
    about = measure.heading(f"Training one mixer: forward + backward, B={B}, width {D}", arguments)
    alive, skipped, points = [], [], []
    for name in measure.names(arguments.mixers, MIXERS):
        try:
            require_equal(name, arguments)
            alive.append(name)
        except (RefusedError, RuntimeError) as error:
            skipped.append(measure.skip(name, error))
    for T in sorted(arguments.lengths):
        rows, ended = at_length(T, alive, arguments)
        points += rows
        skipped += ended
        alive = [name for name in alive if name not in {row["name"] for row in ended}]
        show(T, rows, ended)
    for row in skipped:
        print(f"{row['name']}: {row['skipped']}")
    if arguments.plot:
        draw(points, arguments)
    return {"conditions": about, "results": points, "skipped": skipped}


def at_length(T: int, names: list[str], arguments: SimpleNamespace) -> tuple[list[Row], list[Row]]:
    """The points at this length, and the rows of those that end here."""
    device, dtype = measure.device_and_type(arguments)
    size = (arguments.batch, T, arguments.width)
    calls: dict[str, measure.Call] = {"copy": measure.copy_call(size, dtype, device)}
    rows, ended = [], []
    for name in names:
        try:
            apart = measure_apart(name, T, arguments)
        except RefusedError as error:
            ended.append(measure.skip(name, error))
            continue
        row = {"name": name, "T": T, "bytes": apart["bytes"], "times": [apart["seconds"]]}
        if apart["seconds"] > arguments.limit:
            ended.append({"name": name, "skipped": f"stopped after T = {T:,}, which took {apart['seconds']:.1f} s"})
        else:
            calls[name] = Step(make(name, T, arguments), size, device, dtype)
        rows.append(row)
    times = measure.in_turns(calls, arguments.repeat, device)
    for row in rows:
        row["times"] = times.get(row["name"], row["times"])
    add_ratios(rows, measure.median(times["copy"]))
    return rows, ended


def add_ratios(rows: list[Row], copy: float) -> None:
    """Over a copy of the input, and over each baseline that got this far: `x NAME` is how many times as fast."""
    medians = {row["name"]: measure.median(row["times"]) for row in rows}
    for row in rows:
        row["copies"] = medians[row["name"]] / copy
        row["speedups"] = {base: medians[base] / medians[row["name"]] for base in BASELINES if base in medians}


def show(T: int, rows: list[Row], ended: list[Row]) -> None:
    """The table of one length."""
    bases = [base for base in BASELINES if any(base in row["speedups"] for row in rows)]
    print(f"\nT={T:,}")
    lines = [
        (
            row["name"],
            measure.spread(row["times"]) + ("*" if row["name"] in {end["name"] for end in ended} else ""),
            f"{row['copies']:,.1f}",
            *(measure.number(row["speedups"].get(base), ",.1f") for base in bases),
            f"{row['bytes'] / 2**20:,.1f}",
        )
        for row in rows
    ]
    measure.print_table(("", "ms (* once)", "copies", *(f"x {base}" for base in bases), "peak MiB"), lines)


def draw(points: list[Row], arguments: SimpleNamespace) -> None:
    """Time, speed-up over the paper's baseline, and memory."""
    from lm.report import plot

    def curves(value: Callable[[Row], float]) -> dict[str, plot.Curve]:
        found: dict[str, plot.Curve] = {}
        for row in points:
            found.setdefault(row["name"], []).append((row["T"], value(row)))
        # What was not measured, or is too little to see, has no place on a logarithmic axis.
        return {name: [(T, y) for T, y in curve if y > 0] for name, curve in found.items()}

    panels = [
        plot.Panel(
            "time of one training step", "milliseconds", curves(lambda row: 1000 * measure.median(row["times"]))
        ),
        plot.Panel(
            "speed over the step-by-step GRU", "times as fast", curves(lambda row: row["speedups"].get(BASELINES[0], 0))
        ),
        plot.Panel("peak memory", "MiB", curves(lambda row: row["bytes"] / 2**20)),
    ]
    title = f"one mixer, B = {arguments.batch}, width {arguments.width}, forward + backward"
    plot.save(arguments.plot, panels, "sequence length", title)
