"""Who converges faster, in numbers: groups, statistics, time to a target loss, and the warnings that go with them."""

import itertools
import math
import re
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lm.compare.runs import NAN, RunData, compared, is_number
from lm.config.options import COPYING
from lm.files import printable
from lm.report.format import finite
from lm.runs.metrics import AXES

Getter = Callable[[RunData], float]


@dataclass
class Stat:
    """Mean and sample standard deviation over the repetitions of an experiment; NaN where there is none."""

    mean: float = NAN
    spread: float = NAN

    @classmethod
    def of(cls, values: Iterable[float]) -> "Stat":
        kept = [value for value in values if math.isfinite(value)]
        if not kept:
            return cls()
        return cls(statistics.fmean(kept), statistics.stdev(kept) if len(kept) > 1 else NAN)

    def to_json(self) -> dict[str, float | None]:
        return {"mean": finite(self.mean), "spread": finite(self.spread)}


@dataclass
class Group:
    """Runs whose configurations differ only in seed and name."""

    label: str
    runs: list[RunData]

    def stat(self, get: Getter) -> Stat:
        return Stat.of(map(get, self.runs))


@dataclass
class Best:
    """The lowest validation loss of a run and where it was, by AXES; NaN before the first validation."""

    loss: float = NAN
    step: float = NAN
    chars: float = NAN
    train_seconds: float = NAN
    flops: float = NAN


def best(run: RunData, metric: str) -> Best:
    """From metrics.csv, or the loss alone from summary.json where that is all there is."""
    found = run.validations(metric)
    if found:
        lowest, row = min(found)
        return Best(lowest, *(run.columns[axis][row] for axis in AXES))
    values = run.summary.get("best")
    loss = values.get(metric) if isinstance(values, dict) else None
    return Best(float(loss)) if is_number(loss) else Best()


def reach(run: RunData, metric: str, target: float) -> dict[str, float] | None:
    """Steps, characters, seconds and FLOPs at the first validation at or below the target; None if none is."""
    for loss, row in run.validations(metric):
        if loss <= target:
            return {axis: run.columns[axis][row] for axis in AXES}
    return None


def default_target(runs: list[RunData], metric: str) -> float | None:
    """The worst run's best, rounded up to four decimals so that it reaches it; diverged runs count only if all are."""
    losses: dict[bool, list[float]] = {True: [], False: []}
    for run in runs:
        loss = best(run, metric).loss
        if math.isfinite(loss):
            losses[run.status in ("diverged", "failed")].append(loss)
    worst = max(losses[False] or losses[True], default=None)
    return None if worst is None else math.ceil(worst * 1e4) / 1e4


def group(runs: list[RunData]) -> list[Group]:
    """Put repetitions together, in order of their first run; a run without configuration stands alone."""
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
    """What the names have in common, without the seed's or the date's place; else the mixer."""
    if len(runs) == 1:
        return runs[0].name
    names = [run.name for run in runs]
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    common = "".join(letters[0] for letters in same)
    common = re.sub(r"[-_.+= ]+(seed|s|run|r)?[-_.+= ]*\d*$", "", common)
    common = re.sub(r"[-_.]\d{8}$", "", common).rstrip("/")
    return common if len(common) > 1 else runs[0].mixer


MEASURES: dict[str, Getter] = {
    "parameters": lambda run: run.number("parameters"),
    "val/loss": lambda run: best(run, "val/loss").loss,
    "val/loss_streaming": lambda run: best(run, "val/loss_streaming").loss,
    "val/accuracy": lambda run: max(run.points("val/accuracy")[1], default=NAN),
    "bits_per_char": lambda run: best(run, "val/loss").loss / math.log(2),
    "best_step": lambda run: best(run, "val/loss").step,
    "best_seconds": lambda run: best(run, "val/loss").train_seconds,
    "chars_per_second": lambda run: speed(run),
    "memory_mb": lambda run: run.number("peak_gpu_memory_mb", "peak_memory_mb"),
}
"""The columns of the results: each a number of a run."""


def speed(run: RunData) -> float:
    """Characters per second of training, over the whole run."""
    if math.isfinite(value := run.number("chars_per_second")):
        return value
    for chars, seconds in zip(reversed(run.columns["chars"]), reversed(run.columns["train_seconds"]), strict=True):
        if seconds > 0:
            return chars / seconds
    return NAN


@dataclass
class Arrival:
    """How a group reached the target: statistics over the runs that did, and how many times sooner than the slowest."""

    group: Group
    reached: int
    at: dict[str, Stat]
    faster: dict[str, float]


def arrivals(groups: list[Group], metric: str, target: float) -> list[Arrival]:
    """The time-to-target table, soonest in steps first, those that never arrived last."""
    result = []
    for item in groups:
        places = [place for run in item.runs if (place := reach(run, metric, target))]
        at = {axis: Stat.of(place[axis] for place in places) for axis in AXES}
        result.append(Arrival(item, len(places), at, {}))
    for axis in AXES:
        slowest = max((a.at[axis].mean for a in result if a.at[axis].mean > 0), default=NAN)
        for arrival in result:
            mean = arrival.at[axis].mean
            arrival.faster[axis] = slowest / mean if mean > 0 else NAN
    return sorted(result, key=lambda a: a.at["step"].mean if a.reached else math.inf)


def headline(found: list[Arrival], target: float) -> str:
    """The answer in one sentence, or nothing where there is no question."""
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


NOT_COMPARABLE = {
    "data.corpus": "not comparable, the corpora differ",
    "data.column": "not comparable, the corpora differ",
    "data.split": "not comparable, the corpora differ",
    "data.revision": "not comparable, the corpora differ",
    "data.copying.tokens": "not comparable, the problems differ",
    "data.copying.vocabulary": "not comparable, the problems differ",
    "data.context": "windowed losses are not comparable (compare the streaming ones)",
}
"""Options in which runs should not differ, and what follows where they do."""


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
    if len({run.vocabulary for run in runs} - {""}) > 1 and not any("corpora" in text for text in found):
        found.append("not comparable, the corpora differ: their alphabets do")
    if len(processors := sorted({run.processor for run in runs} - {""})) > 1:
        found.append(f"seconds and characters/s come from different machines ({_listed(processors)})")
    found += [f"{run.name}: {problem}" for run in runs for problem in run.problems]
    if skipped:
        found.append(printable(f"no run in {_listed(skipped)}"))
    return found


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def differences(runs: list[RunData]) -> list[tuple[str, list[str]]]:
    """The options in which the runs differ: (key, value of each run), the seed too."""
    keys = dict.fromkeys(key for run in runs for key in run.config if compared(key) or key == "seed")
    rows = [(key, [run.config.get(key, "") for run in runs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def as_json(runs: list[RunData], groups: list[Group], metric: str, target: float | None, notes: list[str]) -> Any:
    """Everything of the tables, for other programs; a number that does not exist is null."""
    found = {} if target is None else {id(a.group): a for a in arrivals(groups, metric, target)}
    return {
        "metric": metric,
        "target": target,
        "warnings": notes,
        "groups": [_group_json(item, found.get(id(item))) for item in groups],
        "runs": [_run_json(run, groups, metric, target) for run in runs],
        "differences": {
            key: dict(zip([r.name for r in runs], values, strict=True)) for key, values in differences(runs)
        },
    }


def _group_json(item: Group, arrival: Arrival | None) -> dict[str, Any]:
    result: dict[str, Any] = {"label": item.label, "runs": [run.name for run in item.runs], "mixer": item.runs[0].mixer}
    result |= {name: item.stat(get).to_json() for name, get in MEASURES.items()}
    if arrival:
        at = {axis: s.to_json() | {"times_faster": finite(arrival.faster[axis])} for axis, s in arrival.at.items()}
        result["to_target"] = {"reached": arrival.reached} | at
    return result


def _run_json(run: RunData, groups: list[Group], metric: str, target: float | None) -> dict[str, Any]:
    label = next(item.label for item in groups if any(member is run for member in item.runs))
    place = None if target is None else reach(run, metric, target)
    return {
        "name": run.name,
        "path": str(run.path),
        "group": label,
        "mixer": run.mixer,
        "status": run.status,
        **{name: finite(get(run)) for name, get in MEASURES.items()},
        "to_target": place and {axis: finite(value) for axis, value in place.items()},
    }
