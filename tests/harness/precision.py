"""The cost of bf16-mixed: the final validation loss of each mixer beside that of float32, mean of seeds.

    python -m tests.harness.precision [--mixers NAME ...] [--seeds N ...]

Trains 300 steps of a model of two layers of width 32. Prints a table in Markdown; a run with a NaN ends it. Exit code 1
if a mean differs by more than 0.01 nats per character.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lm.corpora.sources import read_text
from lm.files import DATA
from lm.mixers import MIXERS
from lm.runs.folder import Run
from tests.commands import train
from tests.conftest import SMALL

OPTIONS = "--trainer.max_steps 300 --eval.every 300 --data.batch_size 16 --eval.sample_chars 0".split()
LIMIT = 0.01


def final_loss(folder: Path, mixer: str, precision: str, seed: int) -> float:
    """Validation loss after training, nats per character."""
    name = f"{mixer}-{precision}-{seed}"
    argv = [*SMALL, *OPTIONS, "--data.corpus", str(folder / "corpus.txt"), "--runs", str(folder), "--name", name]
    argv += ["--model.mixer", mixer, "--trainer.precision", precision, "--seed", str(seed)]
    with contextlib.redirect_stderr(io.StringIO()) as screen:
        code = train(argv)
    if code:
        raise SystemExit(f"{name} ended with {code}:\n{screen.getvalue()}")
    return Run(folder / name).summary()["final"]["val/loss"]


def compare(mixer: str, seeds: Sequence[int]) -> tuple[list[float], list[float]]:
    """The final losses of each seed in float32 and in bf16-mixed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus.txt").write_text(read_text(DATA / "tiny_shakespeare.txt.xz")[:100_000], encoding="utf-8")
        plain, mixed = ([final_loss(folder, mixer, p, seed) for seed in seeds] for p in ("32", "bf16-mixed"))
    return plain, mixed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.harness.precision", description=__doc__.splitlines()[0])
    parser.add_argument("--mixers", nargs="+", default=list(MIXERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    arguments = parser.parse_args()
    print("| mixer | float32 | bf16-mixed | difference of the means |\n|---|---|---|---|")
    worst = 0.0
    for mixer in arguments.mixers:
        plain, mixed = compare(mixer, arguments.seeds)
        difference = (sum(mixed) - sum(plain)) / len(plain)
        worst = max(worst, abs(difference))
        cells = (" ".join(f"{loss:.4f}" for loss in losses) for losses in (plain, mixed))
        print(f"| {mixer} | {' | '.join(cells)} | {difference:+.4f} |", flush=True)
    return 1 if worst > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
