"""The claims of "Were RNNs All We Needed?" (arXiv 2410.01201) beside our measurements.

    char-lm reproduction --parts language --insert docs/reproduction.md

Reads the run folders that `make paper` writes and the numbers that `char-lm bench --json` writes. A claim that has not
been measured is marked so. Each part has its own table, so that it can be measured again without the others.
"""

import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from lm.compare import table
from lm.compare.runs import Reader, RunData
from lm.files import UserError
from lm.report.document import insert

LOSSES = {"mingru": 1.548, "minlstm": 1.555, "mamba": 1.575, "transformer": 1.547}
"""The paper's test losses on Shakespeare."""
BEST_STEPS = {"mingru": 575, "minlstm": 625, "mamba": 400, "transformer": 2000}
"""The paper's steps at which those were reached."""
ACCURACIES = {"mingru": 99.5, "minlstm": 96.0, "mamba": 99.8, "s4d": 18.3}
"""The paper's selective copying, 3 layers, per cent; its S4 beside our S4D."""
LEARNED = "transformer_learned"
"""A second Transformer with learned positions, whose rows appear when it has been trained."""
SPEED_UPS = {("mingru", 512): 175, ("minlstm", 512): 235, ("mingru", 4096): 1324, ("minlstm", 4096): 1361}
"""The paper's, on a T4, over the step-by-step cell of the same family."""
REFERENCE = {"mingru": "gru", "minlstm": "lstm"}
PARAMETERS = {"mingru": (33, 22, 17, 13), "minlstm": (38, 25, 19, 15)}
"""The paper's parameters of a cell at expansion 1 to 4, per cent of those of GRU and LSTM."""
MISSING = "not measured yet"
SOLVED, CLOSE = 95, 5
"""Per cent of accuracy from which a task counts as solved, and within which two accuracies count as equal."""
USAGE = "[--parts PART ...] [--insert FILE]"


@dataclass(frozen=True)
class Row:
    """A claim: the paper's figure, ours, whether they agree, and where ours is from."""

    claim: str
    paper: str
    ours: str
    verdict: str
    source: str

    def __str__(self) -> str:
        return f"| {self.claim} | {self.paper} | {self.ours} | {self.verdict} | {self.source} |"


class Systems:
    """The finished runs of an experiment by system: the name of a run without its seed."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        try:
            found = [run for run in Reader([folder]).read() if run.status == "finished"]
        except UserError:
            found = []
        self.runs: dict[str, list[RunData]] = {}
        for run in found:
            self.runs.setdefault(run.name.rpartition("-seed")[0], []).append(run)

    def best(self, name: str, metric: str = "val/loss") -> table.Stat:
        """Mean and deviation over the seeds of a system's best; NaN without runs."""
        return table.Stat.of(table.MEASURES[metric].get(run) for run in self.runs.get(name, []))

    def source(self, name: str) -> str:
        """Where the figures of a system are from."""
        return f"`{self.folder}/{name}-seed*`"


def parameters(numbers: dict[str, Any]) -> Iterator[Row]:
    """Parameters per cell."""
    rows = numbers.get("results", [])
    for name, paper in PARAMETERS.items():
        found = [100 * row["counts"]["weights"][0] / row["counts"]["weights"][1] for row in rows if row["name"] == name]
        ours = " / ".join(f"{share:.1f}" for share in found) + " %" if found else MISSING
        verdict = "disagrees" if found else "-"
        if len(found) == len(paper) and all(abs(a - b) <= 1 for a, b in zip(found, paper, strict=True)):
            verdict = "agrees" if tuple(map(round, found)) == paper else "agrees to rounding"
        claim = f"{name}: parameters of the cell over {REFERENCE[name]}'s, expansion 1 / 2 / 3 / 4"
        yield Row(claim, " / ".join(map(str, paper)) + " %", ours, verdict, "`char-lm bench parameters`")


def speed(numbers: dict[str, Any]) -> Iterator[Row]:
    """Training speed over the step-by-step cell, and over torch's own."""
    medians = {(row["name"], row["T"]): statistics.median(row["times"]) for row in numbers.get("results", [])}
    batch = numbers["conditions"]["options"]["batch"] if medians else 64
    for (name, T), paper in SPEED_UPS.items():
        base, verdict = REFERENCE[name], "-"
        known = [other for other in (f"{base}_reference", base) if {(name, T), (other, T)} <= medians.keys()]
        over = {other: medians[other, T] / medians[name, T] for other in known}
        if ratio := over.get(f"{base}_reference"):
            slower = f"faster, but not by hundreds: {numbers['conditions']['machine']}" if ratio > 1 else ""
            verdict = "agrees" if ratio >= 100 else slower or "disagrees: slower"
        claim = f"{name} trains so many times as fast as the step-by-step {base}, batch {batch}, length {T}"
        ours = ", ".join(f"{ratio:,.1f} x {other}" for other, ratio in over.items())
        yield Row(claim, f"{paper} x (T4)", ours or MISSING, verdict, "`char-lm bench length`")


def memory(numbers: dict[str, Any]) -> Iterator[Row]:
    """Memory of training at length 512."""
    used = {row["name"]: row["bytes"] for row in numbers.get("results", []) if row["T"] == 512}
    for name, base, paper in (("mingru", "gru_reference", 88), ("mamba", "mingru", 56)):
        ours, verdict = MISSING, "-"
        if name in used and base in used:
            more = 100 * (used[name] / used[base] - 1)
            ours = f"{more:+.0f} %"
            verdict = "agrees in direction" if more > 0 else "disagrees: nothing but h is kept for backward"
        yield Row(f"{name} takes more memory than {base}", f"+{paper} %", ours, verdict, "`char-lm bench length`")


def language(runs: Systems, where: str = "Shakespeare", speeds: dict[str, float] | None = None) -> Iterator[Row]:
    """Losses of language modelling, and the steps and seconds to the Transformer's best.

    Args:
        where: begins each claim.
        speeds: seconds per step of each system, measured side by side; without them those of the runs count.
    """
    transformer = runs.best("transformer").mean
    for name, paper in LOSSES.items():
        verdict, ahead = "-", transformer - runs.best(name).mean
        if name == "transformer" and math.isfinite(transformer):
            verdict = "the yardstick"
        elif math.isfinite(ahead):
            verdict = f"{beside(ahead)} than the Transformer (paper: {paper - LOSSES['transformer']:+.3f})"
        known = f"{paper} at step {BEST_STEPS[name]:,}"
        yield Row(f"{where}, {name}: best loss", known, best_loss(runs, name), verdict, runs.source(name))
    yield from to_target(runs, where, speeds=speeds)
    if LEARNED in runs.runs:
        verdict = f"{beside(transformer - runs.best(LEARNED).mean)} than with rotary positions"
        yield Row(f"{where}, {LEARNED}: best loss", "-", best_loss(runs, LEARNED), verdict, runs.source(LEARNED))
        yield from to_target(runs, where, LEARNED)


def best_loss(runs: Systems, name: str) -> str:
    """The best losses of a system's seeds and their steps, in words."""
    stat, count = runs.best(name), len(runs.runs.get(name, []))
    if not math.isfinite(stat.mean):
        return MISSING
    deviation = f" +- {stat.spread:.3f}" if math.isfinite(stat.spread) else ""
    step = runs.best(name, "best_step").mean
    at_step = f" at step {step:,.0f}" if math.isfinite(step) else ""
    return f"{stat.mean:.3f}{deviation}{at_step} ({count} seed{'s' if count > 1 else ''})"


def beside(ahead: float) -> str:
    """How much better or worse a loss is."""
    return f"{abs(ahead):.3f} {'better' if ahead > 0 else 'worse'}"


def to_target(
    runs: Systems, where: str, yardstick: str = "transformer", speeds: dict[str, float] | None = None
) -> Iterator[Row]:
    """What each needs to reach a Transformer's best loss: the worst of its seeds', so that all of them reach it."""
    target = table.default_target(runs.runs.get(yardstick, []), "val/loss")
    if target is None:
        claim = f"{where}: steps to the Transformer's best loss"
        yield Row(claim, "2.5 x fewer", MISSING, "-", runs.source(yardstick))
        return
    groups = [table.Group(name, runs.runs[name]) for name in (*LOSSES, LEARNED) if name in runs.runs]
    found = {arrival.group.label: arrival for arrival in table.arrivals(groups, "val/loss", target)}
    for name in LOSSES:
        if name not in ("transformer", yardstick) and name in found:
            fewer = BEST_STEPS["transformer"] / BEST_STEPS[name]
            paper = f"{'2.5 x fewer; ' if name == 'mingru' else ''}to the own best {fewer:.1f} x fewer"
            claim = f"{where}, {name}: steps to the best loss of {yardstick}, {target:.4f}"
            faster = speeds[yardstick] / speeds[name] if speeds and {name, yardstick} <= speeds.keys() else None
            yield Row(claim, paper, *steps_and_seconds(found[name], found[yardstick], faster), runs.source(name))


def steps_and_seconds(ours: table.Arrival, transformer: table.Arrival, faster: float | None = None) -> tuple[str, str]:
    """What a system needs to the target beside the Transformer, in words, and the verdict.

    Args:
        faster: how many times as fast its steps are, if that was measured apart from the runs.
    """
    count, slow = len(ours.group.runs), transformer.at
    if not transformer.reached or not ours.group.has("val/loss"):
        return MISSING, "-"
    if not ours.reached:
        return "not reached" if count == 1 else f"not reached by any of {count} seeds", "disagrees"
    steps, seconds = (slow[axis].mean / ours.at[axis].mean for axis in ("step", "train_seconds"))
    seconds = seconds if faster is None else steps * faster
    counts = f"{ours.at['step'].mean:,.0f} against {slow['step'].mean:,.0f} steps"
    text = f"{counts}: {times(steps, 'fewer', 'more')}; {times(seconds, 'less', 'more')} time"
    text += f" ({ours.reached} of {count} seeds reach it)" if ours.reached < count else ""
    return text, "agrees" if steps >= 2 else "fewer, but less so" if steps > 1.05 else "disagrees"


def times(ratio: float, smaller: str, larger: str) -> str:
    """By how many times something is smaller, or larger if the ratio is below one."""
    return f"{ratio:.1f} x {smaller}" if ratio >= 1 else f"{1 / ratio:.1f} x {larger}"


def copying(runs: Systems) -> Iterator[Row]:
    """Accuracy on selective copying by depth."""
    for name, paper in ACCURACIES.items():
        accuracies = {n: 100 * runs.best(f"copying_{name}-layers{n}", "val/accuracy").mean for n in (1, 2, 3)}
        found = {n: value for n, value in accuracies.items() if value == value}
        ours = "; ".join(f"{layers}: {value:.1f} %" for layers, value in found.items()) or MISSING
        verdict = compare_accuracies(found[3], paper) if 3 in found else "-"
        claim = f"selective copying, scaled, {name}: accuracy by layers"
        yield Row(claim, f"3: {paper} %", ours, verdict, runs.source(f"copying_{name}-layers*"))


def full_copying(runs: Systems) -> Iterator[Row]:
    """Accuracy on selective copying at the paper's length."""
    for name, paper in ACCURACIES.items():
        system, ours, verdict = f"copying_{name}", MISSING, "-"
        accuracy, step = (runs.best(system, metric) for metric in ("val/accuracy", "best_step"))
        if math.isfinite(accuracy.mean):
            ours = f"{100 * accuracy.mean:.1f} % after {step.mean:,.0f} steps"
            verdict = compare_accuracies(100 * accuracy.mean, paper)
        claim = f"selective copying at length 4,096, {name}: accuracy"
        yield Row(claim, f"{paper} % after 400,000 steps", ours, verdict, runs.source(system))


def compare_accuracies(ours: float, paper: float) -> str:
    """The verdict on two accuracies in per cent."""
    verdict = "solves it" if ours >= SOLVED else "does not solve it"
    if (ours >= SOLVED) != (paper >= SOLVED):
        return f"{verdict}, unlike the paper"
    if ours >= SOLVED or abs(ours - paper) <= CLOSE:
        return f"{verdict}, as in the paper"
    return f"{verdict}, but {abs(ours - paper):.1f} points {'above' if ours > paper else 'below'} the paper"


def read_json(path: str) -> dict[str, Any]:
    """A benchmark's numbers; {} where there are none."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a benchmark's numbers: {error}") from None


def read_speeds(folder: str) -> dict[str, float]:
    """Seconds per step by system, of those whose `NAME.json` by `char-lm bench step` is in this folder."""
    found = {name: read_json(f"{folder}/{name}.json").get("results", []) for name in LOSSES}
    steps = {name: [row["times"] for row in rows if row["name"] == "whole step"] for name, rows in found.items()}
    return {name: statistics.median(times[0]) for name, times in steps.items() if times}


Part = Literal["cell", "language", "full", "copying", "full_copying"]
"""The parts of the table, each from its own runs or numbers and between its own marks."""


@dataclass
class Options:
    """The paper's claims beside our measurements, as tables in Markdown."""

    parts: list[Part] = field(default_factory=lambda: list(get_args(Part)))
    """which claims (default: all)"""
    language: str = "runs/paper_lm"
    """runs of the language modelling, scaled down"""
    full: str = "runs/paper_full"
    """runs of the language modelling at full size"""
    full_speed: str = "docs/paper_full"
    """numbers of `char-lm bench step` for it: a file NAME.json for each system"""
    copying: str = "runs/paper_copying"
    """runs of the selective copying, scaled down"""
    full_copying: str = "runs/paper_copying_full"
    """runs of the selective copying at full length"""
    length: str = "docs/length_64.json"
    """numbers of `char-lm bench length`"""
    parameters: str = "docs/parameters.json"
    """numbers of `char-lm bench parameters`"""
    insert: str | None = None
    """put each table between the marks `claims PART` of this document"""


def run(options: Options) -> int:
    """Insert the tables into a document, and print them. Returns the exit code."""
    for part in options.parts:
        text = "\n".join(
            ["| claim | paper | ours | verdict | from |", "|---|---|---|---|---|", *map(str, rows(part, options))]
        )
        if options.insert:
            insert(options.insert, f"claims {part}", text, fence="")
        print(text)
    return 0


def rows(part: Part, options: Options) -> Iterator[Row]:
    """The rows of a part."""
    if part == "cell":
        length = read_json(options.length)
        yield from parameters(read_json(options.parameters))
        yield from speed(length)
        yield from memory(length)
    elif part == "language":
        yield from language(Systems(options.language), "Shakespeare, scaled")
    elif part == "full":
        yield from language(Systems(options.full), "Shakespeare, full size", read_speeds(options.full_speed))
    elif part == "copying":
        yield from copying(Systems(options.copying))
    else:
        yield from full_copying(Systems(options.full_copying))
