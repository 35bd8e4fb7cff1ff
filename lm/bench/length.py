"""Time and peak memory of training one mixer (forward + backward) against sequence length, as in the paper's figure.

Memory is that of a fresh process in which nothing else ran, above what it had before the step; there a mixer also
shows whether the next length is worth waiting for. Attention sees the whole sequence.
"""

import json
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lm.bench import measure, models, options
from lm.bench.measure import RefusedError, Row
from lm.mixers import MIXERS, Mixer
from lm.report.format import number
from lm.runs import environment

BASELINES = ("gru_reference", "gru", "lstm_reference", "lstm")
PANELS: list[measure.PanelSpec] = [
    ("time of one training step", "milliseconds", lambda row: 1000 * measure.median(row["times"])),
    ("speed over the step-by-step GRU", "times as fast", lambda row: row["speedups"].get(BASELINES[0], 0)),
    ("peak memory", "MiB", lambda row: row["bytes"] / 2**20),
]


class Step:
    """Forward and backward of one mixer: gradients of its input and of all its weights."""

    def __init__(self, mixer: Mixer, size: tuple[int, int, int], arguments: options.Length) -> None:
        device, self.dtype = measure.device_and_type(arguments)
        self.mixer, self.parameters = mixer, list(mixer.parameters())
        self.x = torch.randn(size, device=device, requires_grad=True)
        self.grad_y = torch.randn(size, device=device).to(self.dtype)

    def __call__(self) -> tuple[Tensor, ...]:
        with measure.precision(self.x.device, self.dtype):
            y, _ = self.mixer(self.x)
        # At T = 1, where the warm-up may be, not all weights matter: the recurrent ones only meet a zero state.
        return torch.autograd.grad(y.to(self.dtype), [self.x, *self.parameters], self.grad_y, allow_unused=True)


def make(name: str, T: int, arguments: options.Length) -> Mixer:
    """A mixer for sequences of length T."""
    device, _ = measure.device_and_type(arguments)
    given = {"expansion": arguments.expansion, "convolution": arguments.convolution, "window": T}
    return models.make_mixer(name, arguments.width, **given).to(device)


def checked(name: str, arguments: options.Length) -> tuple[str, Row]:
    """The name of a mixer whose forward equals its steps. Raises RefusedError."""
    device, _ = measure.device_and_type(arguments)
    x = torch.randn(2, 24, arguments.width, device=device)
    measure.require_forward_equals_steps(make(name, 24, arguments), x)
    return name, {}


def peak_of_one_step(name: str, T: int, arguments: options.Length) -> tuple[float, Row]:
    """The seconds of one training step (once, cold), and the bytes that it adds at its peak, input included."""
    device, _ = measure.device_and_type(arguments)
    mixer = make(name, T, arguments)
    Step(mixer, (1, 8, arguments.width), arguments)()  # libraries, thread pools and kernels are not its memory
    before = reset_peak(device)
    step = Step(mixer, (arguments.batch, T, arguments.width), arguments)
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    return seconds, {"bytes": peak_bytes(device) - before}


def reset_peak(device: torch.device) -> int:
    """Start to measure the peak anew where the system can; returns the bytes in use."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes(device)


def peak_bytes(device: torch.device) -> int:
    """The most that this process had in memory since `reset_peak`; 0 if the system does not report it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return environment.peak_bytes() or 0


def measure_apart(name: str, T: int, arguments: options.Length) -> tuple[float, Row]:
    """`peak_of_one_step` in a fresh process. Raises RefusedError if that fails."""
    code = "import sys; from lm.bench import length; length.child(sys.argv[1])"
    task = json.dumps({"name": name, "T": T, "arguments": vars(arguments)})
    child = subprocess.run([sys.executable, "-c", code, task], capture_output=True, text=True)
    if child.returncode:
        reason = (child.stderr.strip().splitlines() or [f"ended with code {child.returncode}; out of memory?"])[-1]
        raise RefusedError(f"T = {T:,}: {reason}")
    seconds, row = json.loads(child.stdout.splitlines()[-1])
    return seconds, row


def child(task: str) -> None:
    """The work of that process: one task in, one line of JSON out."""
    words = json.loads(task)
    print(json.dumps(peak_of_one_step(words["name"], words["T"], options.Length(**words["arguments"]))))


def run(arguments: options.Length) -> Row:
    """All mixers at all lengths, each until it takes too long."""
    B, D = arguments.batch, arguments.width
    about = measure.heading(f"Training one mixer: forward + backward, B={B}, width {D}", arguments)
    made, rows = measure.prepare({name: partial(checked, name, arguments) for name in arguments.mixers or MIXERS})
    alive, points, skipped = list(made), [], [row for row in rows if "skipped" in row]
    for T in sorted(arguments.lengths):
        rows, ended = at_length(T, alive, arguments)
        points += rows
        skipped += ended
        alive = [name for name in alive if name not in {row["name"] for row in ended}]
        show(T, rows, ended)
    for row in skipped:
        print(f"{row['name']}: {row['skipped']}")
    if arguments.plot:
        title = f"one mixer, B = {B}, width {D}, forward + backward"
        measure.draw(arguments.plot, points, title, PANELS)
    return {"conditions": about, "results": points, "skipped": skipped}


def at_length(T: int, names: list[str], arguments: options.Length) -> tuple[list[Row], list[Row]]:
    """The points at this length, and the rows of those that end here.

    A point has its times over that of a copy of the input, and how many times as fast it is as each of BASELINES.
    """
    device, dtype = measure.device_and_type(arguments)
    size = (arguments.batch, T, arguments.width)
    cold, rows = measure.prepare({name: partial(measure_apart, name, T, arguments) for name in names}, T=T)
    ended = [row for row in rows if "skipped" in row]
    calls: dict[str, measure.Call] = {"copy": measure.copy_call(size, dtype, device)}
    for name, seconds in cold.items():
        if seconds > arguments.limit:
            ended.append({"name": name, "skipped": f"stopped after T = {T:,}, which took {seconds:.1f} s"})
        else:
            calls[name] = Step(make(name, T, arguments), size, arguments)
    times = measure.in_turns(calls, arguments.repeat, device)
    rows = [{**row, "times": times.get(row["name"], [cold[row["name"]]])} for row in rows if row["name"] in cold]
    medians = {row["name"]: measure.median(row["times"]) for row in rows}
    for row in rows:
        seconds = medians[row["name"]]
        row["copies"] = seconds / measure.median(times["copy"])
        row["speedups"] = {base: medians[base] / seconds for base in BASELINES if base in medians}
    return rows, ended


def show(T: int, rows: list[Row], ended: list[Row]) -> None:
    """The table of one length."""
    bases = [base for base in BASELINES if any(base in row["speedups"] for row in rows)]
    once = {row["name"] for row in ended}
    print(f"\nT={T:,}")

    def cells(row: Row) -> list[str]:
        speedups = [number(row["speedups"].get(base), ",.1f") for base in bases]
        times = measure.spread(row["times"]) + ("*" if row["name"] in once else "")
        return [times, f"{row['copies']:,.1f}", *speedups, f"{row['bytes'] / 2**20:,.1f}"]

    measure.print_table(("", "ms (* once)", "copies", *(f"x {base}" for base in bases), "peak MiB"), rows, cells)
