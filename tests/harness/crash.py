"""Kill trainings with SIGKILL, resume them, and compare their end with that of an undisturbed one, to the bit.

    python -m tests.harness.crash --kills 30               at random moments
    python -m tests.harness.crash --kills 0 --calls all    before and after every call that changes the disk

A kill lands anywhere in the life of the process: start-up, the first build of the kernels, steps, validation, the
writing of files. Then the command is given again (`--resume`, or the first one if there is no run yet), and killed
again. A run that finishes is compared, and the next one begins. Prints a table in Markdown; exit code 1 if a run
differs.

Imports take longer than such a training. So most trainings are forks of this process, which has done the imports; one
in five random kills hits a process of its own.
"""

import argparse
import collections
import csv
import functools
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from lm.corpora.sources import read_text
from lm.files import DATA
from lm.native import build as native
from lm.runs.checkpoint import read_checkpoint
from lm.training import checkpoints
from tests.commands import ROOT, train
from tests.conftest import SMALL

TIMES = ("train_seconds", "chars_per_second")
EXACT = "--trainer.max_steps 60 --eval.every 6 --log.every 4 --model.dropout 0.1".split()
STREAMS = "--data.sampling streams --trainer.accumulate 2".split()
CALLS = ("open", "replace", "fsync", "link", "mkdir", "unlink")
"""Functions of `os` that, with the writes between their calls, change the disk."""


# ---------------------------------------------------------------- comparing two runs


def metrics(run: Path) -> list[dict[str, str]]:
    """The cells of metrics.csv as text, without times and speeds."""
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def differences(a: Path, b: Path) -> list[str]:
    """In what two runs differ: weights and optimiser to the bit, rows, samples, best weights, names of files."""
    found = []
    for name in ("last.ckpt", "best.ckpt"):
        first, second = (read_checkpoint(run / "checkpoints" / name) for run in (a, b))
        for key in ("state_dict", "optimizer_states", "global_step", "carried"):
            if not _equal(first[key], second[key]):
                found.append(f"{key} of {name}")
    if metrics(a) != metrics(b):
        found.append("metrics.csv")
    if (a / "samples.jsonl").read_bytes() != (b / "samples.jsonl").read_bytes():
        found.append("samples.jsonl")
    files = [{str(path.relative_to(run)) for path in run.rglob("*")} for run in (a, b)]
    return found + sorted(files[0] ^ files[1])


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


# ---------------------------------------------------------------- trainings that can be killed


class Kit:
    """A folder with a corpus, the options of a training, and the run that they give without kills."""

    def __init__(self, folder: Path, options: list[str]) -> None:
        self.folder = folder
        folder.mkdir()
        corpus = folder / "corpus.txt"
        corpus.write_text(read_text(DATA / "tiny_shakespeare.txt.xz")[:12_000], encoding="utf-8")
        self.options = [*SMALL, "--data.corpus", str(corpus), "--runs", str(folder), *options]
        self.whole = folder / "whole"
        self.phase = mmap.mmap(-1, 32)
        """What the last child was doing."""

    def command(self, name: str) -> list[str]:
        """The words that start or resume this run."""
        if (self.folder / name / "config.yaml").exists():
            return ["--resume", str(self.folder / name)]
        return [*self.options, "--name", name]

    def fork(self, name: str, prepare: Callable[[], None] = lambda: None) -> int:
        """Train in a fork of this process, with an empty cache of kernels. Returns its id."""
        argv = self.command(name)
        if child := os.fork():
            return child
        try:
            with (self.folder / "screen.txt").open("a") as screen:
                os.dup2(screen.fileno(), 2)
            os.environ["XDG_CACHE_HOME"] = str(self.folder / f"cache-{name}")
            note_phases(self.phase)
            prepare()
            os._exit(train(argv))
        finally:
            os._exit(1)

    def spawn(self, name: str) -> subprocess.Popen:
        """Train in a process of its own, with an empty cache of kernels."""
        self.phase[:] = b"a process of its own".ljust(32)
        words = [sys.executable, str(ROOT / "train.py"), *self.command(name)]
        environment = {**os.environ, "XDG_CACHE_HOME": str(self.folder / f"cache-{name}")}
        with (self.folder / "screen.txt").open("a") as screen:
            return subprocess.Popen(words, cwd=ROOT, env=environment, stderr=screen)

    def finish(self, name: str) -> float:
        """Train to the end. Returns the seconds that it took."""
        before = time.monotonic()
        code = os.waitstatus_to_exitcode(os.waitpid(self.fork(name), 0)[1])
        if code:
            raise SystemExit(f"{self.folder / name} ended with {code}:\n{(self.folder / 'screen.txt').read_text()}")
        return time.monotonic() - before

    def verdict(self, name: str) -> list[str]:
        """In what a finished run differs from the undisturbed one. Deletes it: the next one may have its name."""
        found = differences(self.folder / name, self.whole)
        shutil.rmtree(self.folder / name)
        shutil.rmtree(self.folder / f"cache-{name}")
        return found


def note_phases(phase: mmap.mmap) -> None:
    """Note what this process is doing, for the report."""

    def during(text: str, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        @functools.wraps(function)
        def noting(*args: Any, **kwargs: Any) -> Any:
            before, phase[:] = phase[:], text.encode().ljust(32)
            try:
                return function(*args, **kwargs)
            finally:
                phase[:] = before

        setattr(owner, name, noting)

    def begins(text: str, name: str) -> None:
        setattr(checkpoints.Checkpoints, name, lambda *_: phase.__setitem__(slice(None), text.encode().ljust(32)))

    phase[:] = b"start-up".ljust(32)
    begins("steps", "on_train_batch_start")
    begins("validation and samples", "on_validation_start")
    during("building the kernels", native, "_compile")
    during("writing a checkpoint", checkpoints, "save_atomically")


def kill_at_random(kit: Kit, name: str, life: float, own_process: bool, chance: random.Random) -> str | None:
    """Start or resume a run, and kill it within `life` seconds. Returns the phase, or None if it finished before."""
    if own_process:
        before = time.monotonic()
        process = kit.spawn(name)
        time.sleep(max(0.0, chance.uniform(0, life + 6) - time.monotonic() + before))  # 6 s: imports
        process.send_signal(signal.SIGKILL)
        return None if process.wait() == 0 else "a process of its own"
    child = kit.fork(name)
    time.sleep(chance.uniform(0, life))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return kit.phase[:].decode().strip() if os.WIFSIGNALED(status) else None


# ---------------------------------------------------------------- at every call


def kill_at_call(number: int, after: bool, count: mmap.mmap) -> None:
    """Let this process be killed at the call with this number of any of CALLS, before it or just after it."""

    def watch(name: str) -> None:
        function = getattr(os, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            mine = int.from_bytes(count[:8], "little")
            count[:8] = (mine + 1).to_bytes(8, "little")
            if mine == number and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if mine == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(os, name, watched)

    for name in CALLS:
        watch(name)


def sweep_calls(kit: Kit, wanted: int | None, chance: random.Random) -> Iterator[tuple[str, list[str]]]:
    """Kill a run at each call (or so many of them), finish it, and compare. Yields the moment and the differences."""
    count = mmap.mmap(-1, 8)
    os.waitpid(kit.fork("counted", lambda: kill_at_call(-1, False, count)), 0)
    shutil.rmtree(kit.folder / "counted")
    moments = [(n, after) for n in range(int.from_bytes(count[:8], "little")) for after in (False, True)]
    for n, after in moments if wanted is None else chance.sample(moments, wanted):
        count[:8] = bytes(8)
        os.waitpid(kit.fork("cut", functools.partial(kill_at_call, n, after, count)), 0)
        kit.finish("cut")
        yield f"{'after' if after else 'before'} call {n}", kit.verdict("cut")


# ---------------------------------------------------------------- the command


def kill_randomly(
    kit: Kit, life: float, kills: int, own: int, chance: random.Random, tally: collections.Counter
) -> list[str]:
    """Kill so many times within `life` seconds, run after run; every fifth (if own is 5) in a process of its own.

    Returns the differences.
    """
    wrong, run, done = [], 0, 0
    while done < kills:
        phase = kill_at_random(kit, f"run{run}", life, own > 0 and done % own == own - 1, chance)
        if phase is not None:
            done += 1
            tally[phase] += 1
        if phase is None or done == kills:
            kit.finish(f"run{run}")
            wrong += (found := kit.verdict(f"run{run}"))
            print(f"run {run}: {', '.join(found) or 'identical'} after {done} kills", file=sys.stderr, flush=True)
            run += 1
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.harness.crash", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="kills at random moments (default: 30)")
    parser.add_argument("--calls", default="0", help="kills at calls that write: a number, or all")
    parser.add_argument("--own", type=int, default=5, help="every so many random kills, a process of its own; 0: none")
    parser.add_argument("--streams", action="store_true", help="carry the state from batch to batch, in two parts")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # forks of a process with several do not work well
    chance, tally, wrong = random.Random(arguments.seed), collections.Counter(), []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        options = EXACT + STREAMS * arguments.streams
        if arguments.kills:
            kit = Kit(Path(folder, "random"), options)
            life = kit.finish("whole")
            wrong += kill_randomly(kit, life, arguments.kills, arguments.own, chance, tally)
        if arguments.calls != "0":
            kit = Kit(Path(folder, "calls"), [*options, "--trainer.max_steps", "18"])
            kit.finish("whole")
            for moment, found in sweep_calls(kit, None if arguments.calls == "all" else int(arguments.calls), chance):
                tally["a call that writes"] += 1
                if found:
                    print(f"{moment}: {', '.join(found)}", file=sys.stderr)
                wrong += found
    print("| killed during | times |\n|---|---|")
    print("\n".join(f"| {phase} | {times} |" for phase, times in tally.most_common()))
    print(f"\n{sum(tally.values())} kills in {time.monotonic() - began:.0f} s; ", end="")
    print(f"{len(wrong)} differences" if wrong else "every run came to the same end, to the bit")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
