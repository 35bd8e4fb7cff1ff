"""The claims of "Were RNNs All We Needed?" (arXiv 2410.01201) beside our measurements.

    char-lm reproduction --insert docs/reproduction.md

Reads the run folders that `make paper` writes and the numbers that `char-lm bench --json` writes. What has not
been measured says so.
"""

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.compare import table
from lm.compare.runs import Reader, RunData
from lm.files import UserError
from lm.report.document import insert

LOSSES = {"mingru": 1.548, "minlstm": 1.555, "mamba": 1.575, "transformer": 1.547}
"""The paper's test losses on Shakespeare."""


ACCURACIES = {"mingru": 99.5, "minlstm": 96.0, "mamba": 99.8, "s4d": 18.3}
"""The paper's selective copying, 3 layers, per cent; its S4 beside our S4D."""


SPEED_UPS = {("mingru", 512): 175, ("minlstm", 512): 235, ("mingru", 4096): 1324, ("minlstm", 4096): 1361}
"""The paper's, on a T4, over the step-by-step cell of the same family."""


REFERENCE = {"mingru": "gru", "minlstm": "lstm"}


PARAMETERS = {"mingru": "33 / 22 / 17 / 13 %", "minlstm": "38 / 25 / 19 / 15 %"}


MISSING = "not measured yet"


@dataclass(frozen=True)
class Row:
    """A claim: what the paper found, what we found, where, and whether they agree."""

    claim: str
    paper: str
    ours: str
    verdict: str
    source: str

    def __str__(self) -> str:
        return f"| {self.claim} | {self.paper} | {self.ours} | {self.verdict} | {self.source} |"


class Systems:
    """The finished runs of an experiment by system, which is their names without the seed."""

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
        """Mean and spread over the seeds of a system's best; NaN without runs."""
        return table.Stat.of(table.MEASURES[metric](run) for run in self.runs.get(name, []))

    def source(self, name: str) -> str:
        """Where the figure comes from."""
        return f"`{self.folder}/{name}-seed*`"


def parameters(numbers: dict[str, Any]) -> Iterator[Row]:
    """Parameters per cell."""
    rows = numbers.get("results", [])
    for name, paper in PARAMETERS.items():
        found = [100 * row["counts"]["weights"][0] / row["counts"]["weights"][1] for row in rows if row["name"] == name]
        ours = " / ".join(f"{share:.1f}" for share in found) + " %" if found else MISSING
        agrees = " / ".join(f"{share:.0f}" for share in found) + " %" == paper
        verdict = ("agrees" if agrees else "agrees to rounding") if found else "-"
        claim = f"{name}: parameters of the cell over {REFERENCE[name]}'s, expansion 1 / 2 / 3 / 4"
        yield Row(claim, paper, ours, verdict, "`char-lm bench parameters`")


def speed(numbers: dict[str, Any]) -> Iterator[Row]:
    """Training speed over the step-by-step cell, and over torch's own."""
    medians = {(row["name"], row["T"]): statistics.median(row["times"]) for row in numbers.get("results", [])}
    for (name, T), paper in SPEED_UPS.items():
        base = REFERENCE[name]
        ours, verdict = MISSING, "-"
        if (name, T) in medians:
            over = {
                other: medians[other, T] / medians[name, T]
                for other in (f"{base}_reference", base)
                if (other, T) in medians
            }
            ours = ", ".join(f"{ratio:,.1f} x {other}" for other, ratio in over.items())
            ratio = over.get(f"{base}_reference", 0)
            verdict = "agrees" if ratio >= 100 else f"faster, but not by hundreds: {numbers['conditions']['machine']}"
        yield Row(
            f"{name} trains so many times as fast as the step-by-step {base}, length {T}",
            f"{paper} x (T4)", ours, verdict, "`char-lm bench length`",
        )  # fmt: skip


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


def language(runs: Systems) -> Iterator[Row]:
    """Losses of language modelling, and the steps and seconds to the Transformer's best."""
    for name, paper in LOSSES.items():
        stat, runs_of = runs.best(name), runs.runs.get(name, [])
        ours = f"{stat.mean:.3f} +- {stat.spread:.3f} ({len(runs_of)} seeds)" if runs_of else MISSING
        verdict = "-"
        if runs_of and "transformer" in runs.runs:
            ahead = runs.best("transformer").mean - stat.mean
            verdict = (
                "the yardstick" if name == "transformer" else f"{abs(ahead):.3f} {'better' if ahead > 0 else 'worse'}"
            )
            verdict += (
                "" if name == "transformer" else f" than the Transformer (paper: {paper - LOSSES['transformer']:+.3f})"
            )
        yield Row(f"Shakespeare, {name}: loss", f"{paper}", ours, verdict, runs.source(name))
    yield from to_target(runs)


def to_target(runs: Systems) -> Iterator[Row]:
    """What each needs to reach the Transformer's best loss: the worst of its seeds', so that all of them reach it."""
    target = max((table.best(run, "val/loss").loss for run in runs.runs.get("transformer", [])), default=None)
    if target is None:
        yield Row("steps to the Transformer's best loss", "2.5 x fewer", MISSING, "-", runs.source("transformer"))
        return
    found = {
        arrival.group.label: arrival
        for arrival in table.arrivals([table.Group(name, runs.runs[name]) for name in LOSSES if name in runs.runs],
                                      "val/loss", target)
    }  # fmt: skip
    slow = found["transformer"].at
    for name in LOSSES:
        if name == "transformer" or name not in found:
            continue
        at, count = found[name].at, len(runs.runs[name])
        steps, seconds = (slow[axis].mean / at[axis].mean for axis in ("step", "train_seconds"))
        reached = f" ({found[name].reached} of {count} seeds reach it)" if found[name].reached < count else ""
        ours = f"{at['step'].mean:,.0f} against {slow['step'].mean:,.0f} steps: {steps:.1f} x fewer"
        ours += f"; {seconds:.1f} x less time"
        verdict = "agrees" if steps >= 2 else "fewer, but less so" if steps > 1.05 else "disagrees"
        paper = {"mingru": "2.5 x fewer (575 against 2,000 for the best: 3.5)"}.get(name, "-")
        yield Row(
            f"{name}: steps to the Transformer's best loss, {target:.4f}",
            paper,
            ours + reached,
            verdict,
            runs.source(name),
        )


def copying(runs: Systems) -> Iterator[Row]:
    """Accuracy on selective copying by depth."""
    for name, paper in ACCURACIES.items():
        found = {}
        for layers in (1, 2, 3):
            stat = runs.best(f"copying_{name}-layers{layers}", "val/accuracy")
            if stat.mean == stat.mean:
                found[layers] = 100 * stat.mean
        ours = "; ".join(f"{layers}: {value:.1f} %" for layers, value in found.items()) or MISSING
        verdict = "-"
        if 3 in found:
            verdict = "solves it" if found[3] >= 95 else "does not solve it"
            verdict += ", as in the paper" if (found[3] >= 95) == (paper >= 95) else ", unlike the paper"
        yield Row(
            f"selective copying, {name}: accuracy by layers",
            f"3: {paper} %",
            ours,
            verdict,
            runs.source(f"copying_{name}-layers*"),
        )


def read_json(path: str) -> dict[str, Any]:
    """A benchmark's numbers; {} where there are none."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a benchmark's numbers: {error}") from None


USAGE = "[--insert FILE]"


@dataclass
class Options:
    """The paper's claims beside our measurements, as a table in Markdown."""

    language: str = "runs/paper_lm"
    """runs of the language modelling"""
    copying: str = "runs/paper_copying"
    """runs of the selective copying"""
    length: str = "docs/length.json"
    """numbers of `char-lm bench length`"""
    parameters: str = "docs/parameters.json"
    """numbers of `char-lm bench parameters`"""
    insert: str | None = None
    """put the table between the marks `claims` of this document"""


def run(options: Options) -> int:
    """Print the table."""
    length = read_json(options.length)
    rows = [*parameters(read_json(options.parameters)), *speed(length), *memory(length)]
    rows += [*language(Systems(options.language)), *copying(Systems(options.copying))]
    text = "\n".join(["| claim | paper | ours | verdict | from |", "|---|---|---|---|---|", *map(str, rows)])
    print(text)
    if options.insert:
        insert(Path(options.insert), "claims", text, fence="")
    return 0
