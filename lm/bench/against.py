"""The speed of `char-lm train` in this tree beside that of another commit.

The commit is checked out into a temporary folder, and each training is a process of its own, in turns, so that nothing
of the old code is kept in the new one. The seconds per step are those of metrics.csv in both. Environment variables
hold for both, such as ATEN_CPU_CAPABILITY=avx2, ONEDNN_MAX_CPU_ISA=AVX2, MKL_ENABLE_INSTRUCTIONS=AVX2 and
CC="gcc -mno-avx512f", with which all libraries and our kernels do without AVX-512.
"""

import json
import shlex
import tempfile
from pathlib import Path

from lm.bench import measure, options, trainings
from lm.bench.measure import Row
from lm.files import read_text
from lm.report.format import number

HEADER = ("", "precision", "steps/s", "[min-max]", "ms/step")
OURS = "this tree"


def run(arguments: options.Step) -> Row:
    """Train by both in turns, and compare the medians of their speeds."""
    assert arguments.against
    own, other = shlex.split(arguments.ours), shlex.split(arguments.theirs)
    trainings.config_of([*arguments.train, *own], arguments.steps)  # refuse mistakes before anything is trained
    title = f"{arguments.steps} steps of train.py, this tree and {arguments.against}, in processes of their own"
    about = measure.heading(title, options.OnDevice(), "precision as below")
    about |= {"options": dict(sorted(vars(arguments).items()))}
    rows: list[Row] = [{"name": name, "times": []} for name in (arguments.against, OURS)]
    with trainings.checkout(arguments.against) as old:
        for turn in range(arguments.repeat):
            sides = list(zip(rows, (old, trainings.TREE), (other, own), strict=True))
            for row, tree, more in sides if turn % 2 else sides[::-1]:
                seconds, row["precision"] = train_once(tree, arguments.steps, [*arguments.train, *more])
                row["times"].append(seconds)
    theirs, ours = (measure.median(row["times"]) for row in rows)
    print()
    measure.print_table(HEADER, rows, table_row)
    print(f"{OURS} / {arguments.against} = {number(theirs / ours, '.3f')} (steps per second)")
    return {"conditions": about, "results": rows, "ratio": theirs / ours}


def train_once(tree: Path, steps: int, words: list[str]) -> tuple[float, str]:
    """Train by a checkout's train.py. Returns the seconds per step, and the precision in its summary."""
    with tempfile.TemporaryDirectory() as folder:
        trainings.train_at(tree, [*words, *trainings.words_for(Path(folder), "a", steps), "--log.wandb", "disabled"])
        summary = json.loads(read_text(Path(folder, "a", "summary.json")))
        return trainings.seconds_per_step(Path(folder, "a")), summary["precision"]


def table_row(row: Row) -> tuple[str, ...]:
    """The cells of one of the two."""
    speeds = [1 / seconds for seconds in row["times"]]
    middle, low, high = (number(speed, ",.2f") for speed in (measure.median(speeds), min(speeds), max(speeds)))
    return row["precision"], middle, f"[{low}-{high}]", measure.spread(row["times"])
