"""A worker of a search: trains one trial after another until no worker has anything left to do.

Each trial is `char-lm train` in a process of its own, with a run folder like any other. The trial of a worker that is
stopped or killed goes on in the same folder, with another worker or when the same command is given again.
"""

import json
import math
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.analysis.search.space import Parameter
from lm.analysis.search.storage import is_new_file, open_storage, storage_errors
from lm.analysis.search.study import DIVERGED, FAILED, OVER, Claim, ParameterSet, Study, TakenOver
from lm.config.resolve import parse, read_words
from lm.files import UserError, acquire_lock, read_text
from lm.report.format import align, loss
from lm.runs.folder import Run
from lm.runs.metrics import read_rows
from lm.training.clock import Clock
from lm.training.processes import environment_of_trial

ABSENT = "without it"
"""What a message says of an option that a study or a command lacks."""
POLL = 0.5
"""Seconds between looks at a training, or at what other workers do."""
SPARED = 1 / 3
"""Share of the budget before which no trial is pruned: at first a high learning rate looks bad, whatever its end."""


@dataclass(frozen=True)
class Search:
    """What is searched, and where.

    Attributes:
        name: of the study; each system has one of Optuna's with `-SYSTEM` after it.
        storage: URL.
        space: the parameters.
        systems: options of `char-lm train` by the names of the systems.
        trials: sets of parameters for each system, over all workers.
        runs: folder of the run folders.
        seed: of the draws.
        train: the command that trains.
    """

    name: str
    storage: str
    space: list[Parameter]
    systems: dict[str, list[str]]
    trials: int
    runs: str
    seed: int
    train: list[str]

    def words(self, system: str, params: dict[str, Any]) -> list[str]:
        """The options of `char-lm train` for a set of parameters."""
        pairs = ((f"--{each.key}", each.word(params[each.key])) for each in self.space)
        return [*self.systems[system], *(word for pair in pairs for word in pair)]

    def run(self, system: str, number: int) -> Run:
        """The run folder of a set of parameters."""
        return Run(Path(self.runs) / f"{system}-trial{number:03}")

    def check(self) -> None:
        """Check all that needs no storage.

        Raises:
            UserError: names the option and the value that is wrong.
        """
        if not re.fullmatch(r"\w[\w.+=-]{0,99}", self.name):
            raise UserError(f"--study {self.name!r}: use letters, digits and . _ + = -, at most 100")
        for system, argv in self.systems.items():
            given = read_words(argv)[1]
            if both := [each.key for each in self.space if each.key in given or each.key in ("name", "runs")]:
                raise UserError(f"--search {both[0]}: this option is given already")
            for corner in range(max(len(each.extremes) for each in self.space)):
                pairs = ((f"--{each.key}", each.extremes[corner % len(each.extremes)]) for each in self.space)
                parse([*argv, *(word for pair in pairs for word in pair), "--name", self.run(system, 0).path.name])

    def record(self, system: str) -> dict[str, Any]:
        """What must be equal in all workers: the parameters and options, as JSON keeps them."""
        options = parse(self.systems[system]).flat()
        kept = {key: value for key, value in options.items() if not key.startswith(("name", "runs", "log."))}
        return {f"--search {each.key}": each.text for each in self.space} | json.loads(json.dumps(kept))

    @contextmanager
    def studies(self) -> Iterator[dict[str, Study]]:
        """Connect to the studies of all systems, and make those that do not exist, if none is refused.

        Raises:
            UserError: a study was made with other options, a run folder is there already, or the storage refuses, now
                or while the context lasts.
        """
        fresh = {system for system in self.systems if any(Path(self.runs).glob(f"{system}-trial*"))}
        if is_new_file(self.storage):
            self._check_fresh(fresh)
        with open_storage(self.storage) as storage, storage_errors(self.storage):
            known = {study.study_name: study.user_attrs for study in storage.get_all_studies()}
            for system in self.systems:
                if (name := f"{self.name}-{system}") in known:
                    fresh.discard(system)
                    if "options" in known[name]:
                        self._check_same(system, known[name]["options"])
                    elif storage.get_n_trials(storage.get_study_id_from_name(name)):
                        raise UserError(f"study {name} is not of this program; choose another --study")
            self._check_fresh(fresh)
            studies = {}
            for system in self.systems:
                study = Study(storage, f"{self.name}-{system}", self.space, self.trials, self.seed)
                study.optuna.set_user_attr("options", self.record(system))
                studies[system] = study
            yield studies

    def _check_fresh(self, systems: set[str]) -> None:
        if systems:
            found = sorted(Path(self.runs).glob(f"{min(systems)}-trial*"))[0]
            raise UserError(f"{found} exists already and belongs to no trial of a new study; choose another --runs")

    def _check_same(self, system: str, before: dict[str, Any]) -> None:
        now = self.record(system)
        for key in [*before, *now]:
            was, given = before.get(key, ABSENT), now.get(key, ABSENT)
            if was != given:
                raise UserError(
                    f"study {self.name} was made with {key} {was} for {system}, not {given}; "
                    "choose another --study, and --runs"
                )


def run(search: Search) -> int:
    """Work on a search until it is over. Returns the exit code: 0, 1 if a training has failed.

    Any other code of a training ends this worker and is its own.
    """
    search.check()
    code = 0
    with search.studies() as studies:
        try:
            while code in (0, 1) and (found := next_claim(studies)):
                code = train(search, *found)
        finally:
            print("\n".join(report(search, studies)), flush=True)
        failed = any(each.state == "failed" for study in studies.values() for each in study.sets())
    return code if code not in (0, 1) else int(failed)


def next_claim(studies: dict[str, Study]) -> tuple[str, Claim] | None:
    """A trial of the system that has had the fewest; None when the search is over.

    Waits while only other workers have something to do: one of them may die.
    """
    told = False
    while True:
        for system, study in sorted(studies.items(), key=lambda item: len(item[1].sets())):
            if claim := study.claim():
                return system, claim
        if all(study.is_over for study in studies.values()):
            return None
        if not told:
            print("waiting for the trials of other workers", file=sys.stderr, flush=True)
        told = True
        time.sleep(10 * POLL)


def train(search: Search, system: str, claim: Claim) -> int:
    """Train a trial, or go on with it, and store how it ended. Returns the exit code of the training, 0 if pruned."""
    run = search.run(system, claim.number)
    words = [*search.words(system, claim.params), "--runs", search.runs, "--name", run.path.name, "--resume", "auto"]
    print(f"\n{run.path.name}: {describe(claim.params)}", file=sys.stderr, flush=True)
    try:
        with claim.heartbeats():
            code, losses = follow(claim, run, [*search.train, *words])
        return conclude(claim, run, code, losses)
    except TakenOver:
        print(f"{run.path.name} is another worker's now: this one was silent for too long", file=sys.stderr)
        return 0
    except BaseException:
        with suppress(Exception):  # without the storage, another worker will notice that the heartbeats have ended
            claim.end("FAIL")
        raise


def follow(claim: Claim, run: Run, words: list[str]) -> tuple[int | None, list[float]]:
    """Train to the end, or until the trial should be pruned. Returns the exit code, None if pruned, and the losses."""
    losses: dict[int, float] = {}
    while is_locked(run):  # a training that outlives its worker for a moment, to save a checkpoint
        time.sleep(POLL)
    if tell_losses(claim, run, losses):  # those of an earlier worker
        return None, []
    with training(words) as process:
        while True:
            ended = process.poll() is not None  # before the last look at the losses
            pruned = tell_losses(claim, run, losses)
            if ended or pruned:
                break
            time.sleep(POLL)
    return None if pruned and process.returncode else process.returncode, list(losses.values())


def tell_losses(claim: Claim, run: Run, told: dict[int, float]) -> bool:
    """Store the validation losses of a run that are not in `told` yet. Returns whether the trial should be pruned."""
    rows: list[dict[str, float]] = []
    with suppress(UserError):
        rows = read_rows(read_text(run.path / "metrics.csv"))[0]
    pruned = False
    for row in rows:
        step, value = int(row["step"]), row.get("val/loss", math.nan)
        if step not in told and math.isfinite(value):
            told[step] = value
            progress = Clock(run.config().trainer, row.get("train_seconds", 0.0)).progress(step)
            pruned = claim.report(step, value) and SPARED <= progress < 1
    return pruned


@contextmanager
def training(words: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that trains. If the context ends first, the training saves a checkpoint and ends."""
    process = start(words)
    try:
        yield process
    finally:
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            with suppress(KeyboardInterrupt):  # impatient: the second signal ends it without a checkpoint
                process.wait()


def start(words: list[str]) -> "subprocess.Popen[bytes]":
    """Start a command in a group of its own, which a Ctrl-C in the terminal does not reach: `training` passes it on."""
    return subprocess.Popen(words, env=environment_of_trial(), process_group=0)


def is_locked(run: Run) -> bool:
    """Whether a process trains the run."""
    try:
        acquire_lock(run.path / ".lock").close()
    except BlockingIOError:
        return True
    except OSError:  # there is no run yet
        pass
    return False


def conclude(claim: Claim, run: Run, code: int | None, losses: list[float]) -> int:
    """Store how a trial has ended, and print it. Returns the exit code, 0 if it was pruned."""
    word = "to be continued"
    if code is None:
        word = "pruned"
        run.update_summary(status="pruned")
        claim.end("PRUNED")
    elif code == 0 and losses:
        word = f"complete, best loss {loss(min(losses))}"
        claim.end("COMPLETE", min(losses))
    elif code == 1 and run.summary().get("status") == "diverged":
        word = "diverged"
        claim.end("PRUNED", **{DIVERGED: code})
    elif code == 130:  # interrupted by someone else: the next worker goes on with it
        claim.end("FAIL")
    else:
        word = f"failed with code {code}"
        claim.end("FAIL", **{FAILED: code})
    print(f"{run.path.name}: {word}", file=sys.stderr, flush=True)
    return code or 0


def describe(params: dict[str, Any]) -> str:
    """Parameters in a line."""
    return "  ".join(f"{key} {value}" for key, value in params.items())


def report(search: Search, studies: dict[str, Study]) -> list[str]:
    """A table of the systems, their best parameters first, and the command that trains the best of all."""
    best: list[tuple[float, str, ParameterSet]] = []
    rows = [["system", "best loss", "run", *(each.key for each in search.space), *OVER]]
    notes = []
    for system, study in studies.items():
        sets = study.sets()
        counts = [str(sum(each.state == state for each in sets)) for state in OVER]
        done = [(each.loss, system, each) for each in sets if each.state == "complete"]
        if done:
            value, _, first = min(done, key=lambda item: item[0])
            best.append((value, system, first))
            params = [each.word(first.params[each.key]) for each in search.space]
            rows.append([system, loss(value), search.run(system, first.number).path.name, *params, *counts])
        else:
            rows.append([system, "-", "-", *("-" for _ in search.space), *counts])
        if left := sum(each.state not in OVER for each in sets):
            notes.append(f"{system}: {left} unfinished; the same command goes on")
        if study.exhausted:
            notes.append(f"{system}: there are no more than {len(sets)} sets of parameters")
    lines = ["", *align(rows), *notes]
    if best:
        _, system, first = min(best, key=lambda item: item[0])
        lines += ["", f"train the best:  {shlex.join(['char-lm', 'train', *search.words(system, first.params)])}"]
    return [*lines, f"see all:         char-lm compare {shlex.quote(search.runs)} --html report.html"]
