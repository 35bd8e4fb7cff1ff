"""Whether this tree trains as another commit does, to the bit: 300 steps of each mixer in both, metrics compared.

    python -m tests.harness.identical COMMIT [--mixers NAME ...] [--steps N]

Each training is `train.py` in a process of its own, with one thread. Everything in metrics.csv but the seconds and the
speed is compared. Prints a line per mixer; exit code 1 if any differs.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from lm.bench.trainings import TREE, checkout, train_at
from lm.mixers import MIXERS
from tests.harness.crash import metrics

OPTIONS = "--seed 1 --trainer.accelerator cpu --trainer.precision 32 --log.wandb disabled --eval.every 150".split()


def rows_of(tree: Path, runs: Path, mixer: str, steps: int) -> list[dict[str, str]]:
    """Train with the train.py of a checkout. Returns the rows of metrics.csv."""
    name = f"{mixer}-{tree.name}"
    words = [*OPTIONS, "--model.mixer", mixer, "--trainer.max_steps", str(steps), "--runs", str(runs), "--name", name]
    train_at(tree, words, OMP_NUM_THREADS="1")
    return metrics(runs / name)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.harness.identical", description=__doc__.splitlines()[0])
    parser.add_argument("commit")
    parser.add_argument("--mixers", nargs="+", default=list(MIXERS))
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, checkout(arguments.commit) as other:
        failed = 0
        for mixer in arguments.mixers:
            theirs, ours = (rows_of(tree, Path(folder), mixer, arguments.steps) for tree in (other, TREE))
            failed |= theirs != ours
            last = next(row["val/loss"] for row in reversed(ours) if row["val/loss"])
            verdict = "DIFFERENT" if theirs != ours else "identical"
            print(f"{mixer:15} {len(ours)} rows, {verdict}; validation loss {last}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
