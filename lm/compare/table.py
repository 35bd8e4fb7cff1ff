"""The numbers of a comparison: groups of seeds, statistics, time to a target loss, and warnings."""

import itertools
import math
import re
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from lm.compare.runs import NAN, RunData, compared, is_number
from lm.config.options import COPYING
from lm.files import printable
from lm.report.format import finite, loss, short
from lm.runs.metrics import AXES

UNFINISHED = ("pruned", "diverged", "failed")
"""Statuses of runs whose best loss says little about their system."""


@dataclass
class Stat:
    """Mean and sample standard deviation over the runs of a group; NaN where there is none."""

    mean: float = NAN
    spread: float = NAN

    @classmethod
    def of(cls, values: Iterable[float]) -> "Stat":
        """The statistics of the finite ones of some values."""
        kept = [value for value in values if math.isfinite(value)]
        if not kept:
            return cls()
        return cls(statistics.fmean(kept), statistics.stdev(kept) if len(kept) > 1 else NAN)

    def text(self, form: Callable[[float], str], spread: bool = True) -> str:
        """The mean, and the deviation where there is one: `1.5678 ±0.0012`."""
        return form(self.mean) + (f" ±{form(self.spread)}" if spread and math.isfinite(self.spread) else "")

    def to_json(self) -> dict[str, float | None]:
        """The same for JSON: null where there is none."""
        return finite(vars(self))


@dataclass(frozen=True)
class Measure:
    """A column of the results: a number of each run.

    Attributes:
        heading: the column's heading.
        get: the number; NaN where the run has none.
        form: formats it.
        spread: whether to show the deviation over seeds.
    """

    heading: str
    get: Callable[[RunData], float]
    form: Callable[[float], str] = short
    spread: bool = True


@dataclass
class Group:
    """Runs whose configurations differ only in seed and name."""

    label: str
    runs: list[RunData]

    @property
    def name(self) -> str:
        """Its label, with the number of its runs if there are several."""
        return self.label + (f" x{len(self.runs)}" if len(self.runs) > 1 else "")

    @property
    def status(self) -> str:
        """The statuses of its runs, each once."""
        return ", ".join(dict.fromkeys(run.status for run in self.runs))

    def has(self, value: str) -> bool:
        """Whether any of its runs has points of this column of metrics.csv."""
        return any(run.points(value) for run in self.runs)

    def stat(self, measure: str) -> Stat:
        """Mean and deviation of one of MEASURES."""
        return Stat.of(map(MEASURES[measure].get, self.runs))


def best(run: RunData, metric: str) -> dict[str, float]:
    """The lowest validation loss as `loss`, and where it was, by AXES; NaN for what is not known.

    Without rows in metrics.csv, the loss alone, from summary.json.
    """
    if found := run.validations(metric):
        row = min(found, key=lambda row: row[metric])
        return {"loss": row[metric], **place(row)}
    values = run.summary.get("best")
    only = values.get(metric) if isinstance(values, dict) else None
    return {"loss": float(only) if is_number(only) else NAN, **place({})}


def place(row: dict[str, float]) -> dict[str, float]:
    """Where a row of metrics.csv is, by AXES; NaN where it does not say."""
    return {axis: row.get(axis, NAN) for axis in AXES}


def reach(run: RunData, metric: str, target: float) -> dict[str, float] | None:
    """Steps, characters, seconds and FLOPs at the first validation at or below the target; None if there is none."""
    return next((place(row) for row in run.validations(metric) if row[metric] <= target), None)


def default_target(runs: list[RunData], metric: str) -> float | None:
    """The worst run's best loss, rounded up to four decimals. Runs that are UNFINISHED count only if all are."""
    validated = [run for run in runs if math.isfinite(best(run, metric)["loss"])]
    sound = [run for run in validated if run.status not in UNFINISHED]
    worst = max((best(run, metric)["loss"] for run in sound or validated), default=None)
    return None if worst is None else math.ceil(worst * 1e4) / 1e4


def speed(run: RunData) -> float:
    """Characters per second of training, over the whole run."""
    if math.isfinite(value := run.number("chars_per_second")):
        return value
    points = reversed(run.points("chars", "train_seconds"))
    return next((chars / seconds for seconds, chars in points if seconds > 0), NAN)


def loss_per_byte(run: RunData) -> float:
    """The lowest windowed loss in nats per byte of UTF-8; NaN for a run that does not know the length of characters."""
    return best(run, "val/loss")["loss"] / run.number("bytes_per_character")


MEASURES = {
    "parameters": Measure("params", lambda run: run.number("parameters"), spread=False),
    "val/loss": Measure("val loss", lambda run: best(run, "val/loss")["loss"], loss),
    "loss_per_byte": Measure("val loss/byte", loss_per_byte, loss),
    "val/loss_streaming": Measure("streaming", lambda run: best(run, "val/loss_streaming")["loss"], loss),
    "val/accuracy": Measure("accuracy", lambda run: max((y for _, y in run.points("val/accuracy")), default=NAN), loss),
    "bits_per_char": Measure("bits/char", lambda run: best(run, "val/loss")["loss"] / math.log(2), loss),
    "best_step": Measure("at step", lambda run: best(run, "val/loss")["step"]),
    "best_seconds": Measure("after s", lambda run: best(run, "val/loss")["train_seconds"]),
    "chars_per_second": Measure("chars/s", speed),
    "memory_mb": Measure("MB", lambda run: run.number("peak_gpu_memory_mb", "peak_memory_mb"), spread=False),
}
"""The columns of the results. `at step` and `after s` are those of the lowest windowed loss."""


def measures(runs: Iterable[RunData]) -> dict[str, Measure]:
    """The columns to show of some runs; a run that reads bytes has its loss in both units."""
    if any(run.reads_bytes for run in runs):
        headings = {"val/loss": "val loss/char", "val/loss_streaming": "streaming/char"}
        return MEASURES | {key: replace(MEASURES[key], heading=heading) for key, heading in headings.items()}
    return {key: measure for key, measure in MEASURES.items() if key != "loss_per_byte"}


def group(runs: list[RunData]) -> list[Group]:
    """Put the seeds of an experiment together, in order of their first run; a run without configuration stays alone."""
    experiments: dict[Any, list[RunData]] = {}
    for run in runs:
        experiments.setdefault(run.experiment or run.path, []).append(run)
    groups = [Group(_label(members), members) for members in experiments.values()]
    labels = [item.label for item in groups]
    for item in groups:
        if labels.count(item.label) > 1:
            item.label = f"{item.label} ({item.runs[0].name})" if len(item.runs) > 1 else item.runs[0].name
    return groups


def _label(runs: list[RunData]) -> str:
    """The common start of the names, without what precedes the seed or date; if that is too short, the mixer."""
    if len(runs) == 1:
        return runs[0].name
    names = [run.name for run in runs]
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    common = "".join(letters[0] for letters in same)
    common = re.sub(r"[-_.+= ]+(seed|s|run|r)?[-_.+= ]*\d*$", "", common)
    common = re.sub(r"[-_.]\d{8}$", "", common).rstrip("/")
    return common if len(common) > 1 else runs[0].mixer


@dataclass
class Arrival:
    """Where a group reached the target: statistics over those of its runs that did, by AXES, and how many times sooner
    than the slowest group."""

    group: Group
    reached: int
    at: dict[str, Stat]
    faster: dict[str, float]


def arrivals(groups: list[Group], metric: str, target: float) -> list[Arrival]:
    """The time-to-target table: soonest in steps first, groups that never reached it last."""
    result = []
    for item in groups:
        places = [reached for run in item.runs if (reached := reach(run, metric, target))]
        at = {axis: Stat.of(reached[axis] for reached in places) for axis in AXES}
        result.append(Arrival(item, len(places), at, {}))
    for axis in AXES:
        slowest = max((a.at[axis].mean for a in result if a.at[axis].mean > 0), default=NAN)
        for arrival in result:
            mean = arrival.at[axis].mean
            arrival.faster[axis] = slowest / mean if mean > 0 else NAN
    return sorted(result, key=lambda a: a.at["step"].mean if a.reached else math.inf)


BUDGETS = {"trainer.max_minutes": ("train_seconds", "s of training"), "trainer.max_steps": ("chars", "characters")}
"""What an option limits, by AXES, and in words."""


def at_equal_budget(groups: list[Group], metric: str) -> str:
    """One sentence: the mean over seeds of each group's lowest loss within the seconds that all runs have had.

    If their budgets are steps, within the characters instead. The limit is that of the run that was validated last the
    earliest, and 2 % more: a clock budget ends at a whole step. Empty for fewer than two groups, for budgets of both
    kinds, or where a run has no validation by then, or was pruned.
    """
    runs = [run for item in groups for run in item.runs]
    rows = {id(run): run.validations(metric) for run in runs}
    budgets = [b for option, b in BUDGETS.items() if all(run.config.get(option, "none") != "none" for run in runs)]
    if len(groups) < 2 or not budgets or not all(rows.values()) or any(run.status == "pruned" for run in runs):
        return ""
    axis, unit = budgets[0]
    limit = min(found[-1].get(axis, NAN) for found in rows.values())
    means = {}
    for item in groups:
        within = [[r[metric] for r in rows[id(run)] if r.get(axis, NAN) <= 1.02 * limit] for run in item.runs]
        if not all(within):
            return ""
        means[item.label] = statistics.fmean(map(min, within))
    ranks = sorted(means.items(), key=lambda pair: pair[1])
    return f"{metric} after {short(limit)} {unit}: " + ", ".join(f"{name} {loss(m)}" for name, m in ranks)


def headline(found: list[Arrival], target: float) -> str:
    """One sentence that compares the fastest group with the slowest; empty where fewer than two reached the target."""
    there = [arrival for arrival in found if arrival.reached == len(arrival.group.runs)]
    if len(there) < 2:
        return ""
    first, last = there[0], there[-1]
    steps, seconds = (first.faster[axis] / last.faster[axis] for axis in ("step", "train_seconds"))
    fewer = f"{_rounded(steps)} times fewer steps than" if steps >= 1.05 else "as many steps as"
    less = "."
    if seconds >= 1.05:
        less = f", and in {_rounded(seconds)} times less training time."
    elif seconds <= 0.95:
        less = f", but takes {_rounded(1 / seconds)} times its training time."
    return f"{first.group.label} reaches {target:g} in {fewer} {last.group.label}{less}"


def _rounded(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}"


CORPORA = "not comparable, the corpora differ"
PROBLEMS = "not comparable, the problems differ"
NOT_COMPARABLE = {
    **dict.fromkeys(("data.corpus", "data.column", "data.split", "data.revision"), CORPORA),
    **dict.fromkeys(("data.copying.tokens", "data.copying.vocabulary"), PROBLEMS),
    "data.tuning": "not comparable, some validate on a part of the training text",
    "data.context": "windowed losses are not comparable (compare the streaming ones)",
}
"""Options in which runs should not differ, and the warning where they do."""


def warnings(runs: list[RunData], skipped: list[str]) -> list[str]:
    """What makes numbers not comparable, and what could not be read."""
    found = []
    for key, text in NOT_COMPARABLE.items():
        asked = [
            run for run in runs if run.config and (COPYING in run.config.get("data.corpus", "") or "copying" not in key)
        ]
        values = list(dict.fromkeys(run.config.get(key, "none") for run in asked))
        if len(values) > 1:
            found.append(f"{text}: {key} is {_listed(values)}")
    alphabets = {run.vocabulary for run in runs if not run.reads_bytes} - {""}
    if len(alphabets) > 1 and not any(CORPORA in text for text in found):
        found.append(f"{CORPORA}: their alphabets do")
    if len(processors := sorted({run.processor for run in runs} - {""})) > 1:
        found.append(f"seconds and characters/s come from different machines ({_listed(processors)})")
    if names := [run.name for run in runs if run.reads_bytes and not run.problems]:
        verb = "read" if len(names) > 1 else "reads"
        found.append(f"{_listed(names)} {verb} bytes: losses, characters and characters/s are converted")
    found += [f"{run.name}: {problem}" for run in runs for problem in run.problems]
    if skipped:
        found.append(printable(f"no run in {_listed(skipped)}"))
    return found


def are_comparable(notes: list[str]) -> bool:
    """Whether no warning says that the losses are not."""
    return not any(note.startswith("not comparable") for note in notes)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def differences(runs: list[RunData]) -> dict[str, list[str]]:
    """The options in which the runs differ, the seed too, and the value of each run."""
    keys = dict.fromkeys(key for run in runs for key in run.config if compared(key) or key == "seed")
    rows = {key: [run.config.get(key, "") for run in runs] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def facts(run: RunData) -> dict[str, Any]:
    """What JSON says of a run beside its name: mixer, status and MEASURES; null for a number that it does not have."""
    numbers = {name: finite(measure.get(run)) for name, measure in MEASURES.items()}
    return {"mixer": run.mixer, "status": run.status, **numbers}


def as_json(runs: list[RunData], groups: list[Group], metric: str, target: float | None, notes: list[str]) -> Any:
    """All tables, for other programs; a number that does not exist is null."""
    labels = {id(run): item.label for item in groups for run in item.runs}
    names = [run.name for run in runs]
    found = {} if target is None else {id(a.group): a for a in arrivals(groups, metric, target)}
    places = [None if target is None else finite(reach(run, metric, target)) for run in runs]
    return {
        "metric": metric,
        "target": target,
        "warnings": notes,
        "groups": [_group_json(item, found.get(id(item))) for item in groups],
        "runs": [
            {"name": run.name, "path": str(run.path), "group": labels[id(run)], **facts(run), "to_target": reached}
            for run, reached in zip(runs, places, strict=True)
        ],
        "differences": {key: dict(zip(names, values, strict=True)) for key, values in differences(runs).items()},
    }


def _group_json(item: Group, arrival: Arrival | None) -> dict[str, Any]:
    result: dict[str, Any] = {"label": item.label, "runs": [run.name for run in item.runs], "mixer": item.runs[0].mixer}
    result |= {name: item.stat(name).to_json() for name in MEASURES}
    if arrival:
        at = {axis: s.to_json() | {"times_faster": finite(arrival.faster[axis])} for axis, s in arrival.at.items()}
        result["to_target"] = {"reached": arrival.reached} | at
    return result
