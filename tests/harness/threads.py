"""The effect of the number of BLAS threads: one training with one thread and with two, compared step by step.

    python -m tests.harness.threads

Prints a table in Markdown: the losses of both at a few steps, and how far the final weights are apart.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from lm.corpora.sources import read_text
from lm.files import DATA
from lm.runs.checkpoint import read_checkpoint
from lm.runs.folder import Run
from tests.conftest import SMALL
from tests.harness.crash import ROOT, metrics

OPTIONS = "--trainer.max_steps 300 --eval.every 300 --log.every 1 --model.width 128 --data.batch_size 12".split()
STEPS = (1, 10, 30, 100, 300)


def train_with(threads: int, folder: Path, name: str) -> Path:
    """Train in a process with so many threads. Returns the run folder."""
    argv = [*SMALL, *OPTIONS, "--data.corpus", str(folder / "corpus.txt"), "--runs", str(folder), "--name", name]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    subprocess.run(
        [sys.executable, "train.py", *argv], cwd=ROOT, env=environment, check=True, stderr=subprocess.DEVNULL
    )
    return folder / name


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus.txt").write_text(read_text(DATA / "tiny_shakespeare.txt.xz")[:100_000], encoding="utf-8")
        runs = [train_with(threads, folder, f"threads-{threads}-{i}") for i, threads in enumerate((1, 1, 2, 2))]
        for a, b in (runs[:2], runs[2:]):
            print(f"{a.name[:-2]}, twice: metrics.csv {'the same' if metrics(a) == metrics(b) else 'DIFFERS'}")
        one, two = ({int(r["step"]): r["train/loss"] for r in metrics(run) if r["train/loss"]} for run in runs[1:3])
        print("\n| step | loss, 1 thread | loss, 2 threads |\n|---|---|---|")
        print("\n".join(f"| {step} | {one[step]} | {two[step]} |" for step in STEPS))
        first, second = (read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in runs[1:3])
        far = max((first[key] - second[key]).abs().max().item() for key in first if key.startswith("model."))
        losses = [Run(run).summary()["final"]["val/loss"] for run in runs[1:3]]
        print(f"\nFinal validation loss {losses[0]:.5f} and {losses[1]:.5f}; weights at most {far:.1e} apart.")


if __name__ == "__main__":
    main()
