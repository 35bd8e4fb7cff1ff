"""Texts of growing size: memory, start-up and speed of `char-lm train`, each in a process of its own.

    first start     seconds until the first step of a process that reads and encodes the text
    second start    the same with the text in the cache, median of later processes
    memory          most anonymous memory of the first process: what it has allocated itself. Pages of files that it
                    maps, such as the ids of the text, are not counted: the system takes them back when it needs them
    chars/s         median of the later processes, which take turns with those of other texts; and over that of the
                    first text

A text is the speeches of the embedded Shakespeare in random order, again and again.
"""

import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median

from lm.bench import measure, options, trainings
from lm.bench.measure import Row
from lm.corpora.sources import read_text
from lm.files import DATA, UserError
from lm.report.format import number
from lm.runs.folder import Run

HEADER = ("text, MB", "first start, s", "second start, s", "memory, MB", "chars/s", "")


def run(arguments: options.Corpus) -> Row:
    """Train on a text of each size: once, then some times in turns."""
    about = measure.heading("char-lm train by size of the text", options.OnDevice(device="cpu"), "precision auto")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        for megabytes in arguments.megabytes:
            folder = Path(name, f"{megabytes}")
            folder.mkdir()
            make_text(folder / "text.txt", megabytes * 10**6)
            first = train(folder, "first", arguments.steps)
            rows.append({"name": f"{megabytes:,}", "first": first["start"], "memory": first["memory"]})
        turns = [
            [train(Path(name, f"{megabytes}"), f"{turn}", arguments.steps) for megabytes in arguments.megabytes]
            for turn in range(arguments.repeat)
        ]
    for row, later in zip(rows, zip(*turns, strict=True), strict=True):
        row["second"] = median(each["start"] for each in later)
        row["speeds"] = [each["speed"] for each in later]
        row["relative"] = median(row["speeds"]) / median(rows[0]["speeds"])
    measure.print_table(HEADER, rows, table_row)
    return {"conditions": about, "results": rows}


def make_text(path: Path, size: int) -> None:
    """Write a text of about so many bytes."""
    speeches = read_text(DATA / "shakespeare.txt.xz").split("\n\n")
    order, written = random.Random(0), 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            order.shuffle(speeches)
            written += file.write("\n\n".join(speeches)[: size - written])


def train(
    folder: Path, name: str, steps: int, characters: int = trainings.CHARACTERS, more: Sequence[str] = ()
) -> dict[str, float]:
    """Train on the text in a folder.

    Returns the seconds until the first step, the memory in MB (of several processes the most of any), characters/s, and
    the training loss of the last step.

    Args:
        characters: of a step, by default those of the default options.
        more: options of `char-lm train`.
    """
    words = trainings.words_for(folder, name, steps)
    words += ["--data.corpus", str(folder / "text.txt"), "--eval.chars", "1000", "--log.wandb", "disabled"]
    words += ["--trainer.accelerator", "cpu", "--eval.sample_chars", "0", *more]
    variables = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "lm", "train", *words]
    process = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, *map(anonymous_memory, (process.pid, *children(process.pid))))
        time.sleep(0.01)
    if process.returncode:
        raise UserError(f"char-lm train ended with code {process.returncode}")
    summary = Run(folder / name).summary()
    speed = characters / trainings.seconds_per_step(folder / name)
    return {
        "start": summary["startup_seconds"],
        "memory": peak,
        "speed": speed,
        "loss": summary["final"]["train/loss"],
    }


def children(process: int) -> list[int]:
    """The processes that a process has started; none where the system does not tell, or after its end."""
    with suppress(OSError):
        found = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8")
        return [int(word) for word in found.split()]
    return []


def anonymous_memory(process: int) -> float:
    """Megabytes (10^6 bytes) of a process that no file backs; 0 where the system does not tell, or after its end."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def table_row(row: Row) -> tuple[str, ...]:
    """The cells of a size."""
    forms = {"first": ".1f", "second": ".1f", "memory": ",.0f"}
    cells = [number(row[key], form) for key, form in forms.items()]
    return *cells, measure.whole(row["speeds"]), number(row["relative"], ".2f") + " x"
