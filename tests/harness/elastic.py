"""Train on two torchrun agents on this machine, kill workers and agents, and compare the end with an undisturbed run.

    python -m tests.harness.elastic --kills 10

Each kill hits, in turns, a worker or the agent that does not host the store, at a random moment. torchrun starts killed
workers again; a killed agent is started again by this program, as a scheduler would. Both go on with the run by
`--resume auto`. Prints what was killed and whether the runs end alike, to the bit; exit code 1 if they do not.
"""

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lm.corpora.sources import read_text
from lm.files import DATA
from tests.commands import ROOT
from tests.conftest import SMALL
from tests.harness.crash import differences

OPTIONS = "--eval.every 50 --log.every 10 --model.dropout 0.1 --eval.sample_chars 0".split()


class Agents:
    """Two agents of a node each, with a worker each, that train a run."""

    def __init__(self, folder: Path, name: str, steps: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "1000"]
        rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", name]
        run = ["--data.corpus", str(folder / "corpus.txt"), "--runs", str(folder), "--name", name, "--resume", "auto"]
        self.command = [sys.executable, *torchrun, *rendezvous, "train.py", *SMALL, *OPTIONS, *run]
        self.command += ["--trainer.max_steps", str(steps)]
        self.restarts = 0
        self.screen = (folder / f"{name}.txt").open("w")
        self.processes = [self.start()]
        time.sleep(3)  # the first hosts the store
        self.processes.append(self.start())

    def start(self) -> subprocess.Popen:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(self.command, cwd=ROOT, env=environment, stderr=self.screen, stdout=self.screen)

    def workers(self) -> list[int]:
        """The ids of the workers that are alive."""
        found = []
        for agent in self.processes:
            children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
            found += [int(child) for child in children.read_text().split()] if children.exists() else []
        return found

    def kill(self, victim: str) -> bool:
        """Kill a worker or the second agent; False if there is none at this moment."""
        if victim == "agent":
            second = self.processes[1]
            if second.poll() is None:
                orphans = self.workers()
                second.kill()
                second.wait()
                self.processes[1] = self.start()
                return bool(orphans)
            return False
        workers = self.workers()
        if workers:
            os.kill(random.choice(workers), signal.SIGKILL)
        return bool(workers)

    def tail(self) -> str:
        """The last lines of the screen."""
        return "\n".join(Path(self.screen.name).read_text().splitlines()[-60:])

    def done(self) -> bool:
        """Whether both have ended well. One that has failed, as it waited for a dead one too long, is started again."""
        for i, process in enumerate(self.processes):
            if process.poll() not in (None, 0):
                self.restarts += 1
                self.processes[i] = self.start()
                if self.restarts > 30:
                    raise RuntimeError(f"the agents end again and again:\n{self.tail()}")
        return [process.poll() for process in self.processes] == [0, 0]


def run(folder: Path, kills: int, steps: int) -> bool:
    """Train with so many kills. Returns whether the run ends as one without kills."""
    random.seed(kills)
    (folder / "corpus.txt").write_text(read_text(DATA / "tiny_shakespeare.txt.xz")[:12_000], encoding="utf-8")
    whole = Agents(folder, "whole", steps)
    while not whole.done():
        time.sleep(0.2)
    agents, killed = Agents(folder, "killed", steps), 0
    metrics = folder / "killed" / "metrics.csv"
    while not agents.done():
        before = metrics.read_bytes().count(b"\n") - 1 if metrics.exists() else 0
        time.sleep(random.uniform(0.2, 4.0))
        if killed < kills and before > 0:
            victim = ("worker", "agent")[killed % 2]
            if agents.kill(victim):
                killed += 1
                print(f"killed   {victim}, {before} rows of metrics.csv", flush=True)
                wait_for_rows(agents, metrics)
    found = differences(folder / "killed", folder / "whole")
    print(f"{killed} kills; " + (f"differ: {found}" if found else "the same end, to the bit"))
    return not found and killed == kills


def wait_for_rows(agents: Agents, metrics: Path, seconds: float = 300) -> None:
    """Wait until training goes on: a file that was written after this moment."""
    since, limit = time.time(), time.monotonic() + seconds
    while not agents.done() and metrics.stat().st_mtime <= since + 1:
        if time.monotonic() > limit:
            raise RuntimeError(f"training does not go on:\n{agents.tail()}")
        time.sleep(0.1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        return 0 if run(Path(name), options.kills, options.steps) else 1


if __name__ == "__main__":
    sys.exit(main())
