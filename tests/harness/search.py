"""Search with several workers on PostgreSQL, kill some of them, and check that no trial is lost or finished twice.

    python -m tests.harness.search --workers 4 --kills 2

A killed worker (SIGKILL, while its trial trains) is not started again: the others find its trial and go on with it in
the same run folder. Needs PostgreSQL's programs. Prints the kills and a table; exit code 1 if a trial is lost or
finished twice.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from lm.analysis.search.storage import open_storage
from lm.analysis.search.study import OVER, ParameterSet, group
from lm.corpora.sources import read_text
from lm.files import DATA
from lm.report.format import align
from lm.runs.folder import Run
from tests.commands import ROOT
from tests.conftest import SMALL
from tests.postgres import server, version

SYSTEMS = ("mingru", "minlstm")
SPACE = ("optim.muon_lr=log(0.001,0.1)", "model.dropout=0.0..0.3", "optim.warmup_steps=5..50")
WORKER = """
import sys
from lm import cli
from lm.analysis.search import storage
storage.HEARTBEAT, storage.GRACE = 1, 4
sys.exit(cli.main(["sweep", *sys.argv[1:]]))
"""
"""A worker whose silence is noticed after seconds."""


@dataclass
class Outcome:
    """How a search with kills ended."""

    sets: dict[str, list[ParameterSet]]
    """of each system, as many as the search has"""
    killed: list[str] = field(default_factory=list)
    """the runs that were trained by killed workers"""
    codes: list[int] = field(default_factory=list)
    """exit codes of the other workers"""

    def finished_twice(self, system: str) -> int:
        """Sets of parameters with several finished trials."""
        done = [[t for t in each.trials if t.state.name in ("COMPLETE", "PRUNED")] for each in self.sets[system]]
        return sum(len(trials) > 1 for trials in done)

    def lost(self, system: str) -> int:
        """Sets of parameters that are not finished."""
        return sum(each.state not in OVER for each in self.sets[system])


class Workers:
    """Processes that search together."""

    def __init__(self, folder: Path, url: str, trials: int, count: int, steps: int) -> None:
        self.runs = folder / "runs"
        words = ["--mixers", *SYSTEMS, "--search", *SPACE, "--trials", str(trials), "--study", "killed"]
        words += ["--storage", url, "--runs", str(self.runs), "--", *SMALL, "--data.corpus", str(folder / "corpus.txt")]
        words += ["--trainer.max_steps", str(steps), "--eval.every", "20", "--log.every", "10"]
        self.screens = [folder / f"worker{number}.txt" for number in range(count)]
        self.processes = [self._start(words, screen) for screen in self.screens]

    def _start(self, words: list[str], screen: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", WORKER, *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with screen.open("w") as file:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)

    def kill_one(self) -> str | None:
        """Kill a worker whose trial has been validated. Returns the name of its run; None if there is none just now."""
        for worker in random.sample(self.processes, len(self.processes)):
            if (name := self.trial_of(worker)) and self.step(name):
                worker.send_signal(signal.SIGKILL)
                worker.wait()
                self.processes.remove(worker)
                return name
        return None

    def trial_of(self, worker: subprocess.Popen) -> str | None:
        """The name of the run that a worker trains."""
        children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children")
        for child in children.read_text().split() if children.exists() else []:
            command = Path(f"/proc/{child}/cmdline")
            words = command.read_text().split("\0") if command.exists() else []
            if "--name" in words:
                return words[words.index("--name") + 1]
        return None

    def step(self, name: str) -> int:
        """The last validation of a run that still trains; 0 before the first."""
        summary = Run(self.runs / name).summary()
        return summary.get("step", 0) if summary.get("status") == "running" else 0


def search(folder: Path, url: str, trials: int, workers: int, kills: int, steps: int) -> Outcome:
    """Search with so many workers, of which so many are killed."""
    random.seed(kills)
    (folder / "corpus.txt").write_text(read_text(DATA / "tiny_shakespeare.txt.xz")[:12_000], encoding="utf-8")
    together = Workers(folder, url, trials, workers, steps)
    outcome = Outcome({})
    try:
        while any(worker.poll() is None for worker in together.processes):
            time.sleep(random.uniform(0.5, 2))
            if len(outcome.killed) < kills and (name := together.kill_one()):
                print(f"killed a worker in {name}, step {together.step(name)}", flush=True)
                outcome.killed.append(name)
    finally:
        for worker in together.processes:
            worker.terminate()
    outcome.codes = [worker.wait() for worker in together.processes]
    if any(outcome.codes):
        print("\n".join(screen.read_text()[-2000:] for screen in together.screens), file=sys.stderr)
    with open_storage(url) as storage:
        for study in storage.get_all_studies():
            system = study.study_name.removeprefix("killed-")
            outcome.sets[system] = group(storage.get_all_trials(study._study_id))[:trials]
    return outcome


def taken_over(folder: Path, name: str) -> list[int]:
    """The steps from which a run was resumed."""
    history = json.loads((folder / "runs" / name / "environment.json").read_text())
    return [entry["step"] for entry in history.get("resumed", [])]


def report(folder: Path, outcome: Outcome) -> list[str]:
    """A row for each system."""
    rows = [["system", "trials", "run folders", *OVER, "lost", "finished twice", "taken over"]]
    for system, sets in outcome.sets.items():
        folders = len(list((folder / "runs").glob(f"{system}-trial*")))
        counts = [sum(each.state == state for each in sets) for state in OVER]
        again = sum(any(trial.state.name == "FAIL" for trial in each.trials) for each in sets)
        row = [len(sets), folders, *counts, outcome.lost(system), outcome.finished_twice(system), again]
        rows.append([system, *map(str, row)])
    resumed = [f"{name} went on from step {taken_over(folder, name)[0]}" for name in outcome.killed]
    return [*align(rows, left=1, rule=False), *resumed]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    print(f"{options.workers} workers, {version()}, {options.trials} trials of each system", flush=True)
    with tempfile.TemporaryDirectory() as name, server() as url:
        outcome = search(Path(name), url, options.trials, options.workers, options.kills, options.steps)
        print("\n".join(report(Path(name), outcome)))
    bad = any(outcome.lost(system) or outcome.finished_twice(system) for system in SYSTEMS)
    missing = any(len(outcome.sets[system]) < options.trials for system in SYSTEMS)
    return int(bad or missing or len(outcome.killed) < options.kills or any(outcome.codes))


if __name__ == "__main__":
    sys.exit(main())
