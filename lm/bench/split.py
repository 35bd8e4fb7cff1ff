"""`trainer.split time`: the memory of each process against their number, and whether the losses stay the same.

    memory          most anonymous memory of any process, as in `lm.bench.corpus`
    activations     the same less that of as many processes at a 64th of the context: weights, gradients and libraries
    difference      of the training loss of the last step from that of the first row, relative

All are trainings of `char-lm train` in float32, with one sequence in a batch.
"""

import tempfile
from pathlib import Path

from lm.bench import corpus, measure, options
from lm.bench.measure import Row
from lm.report.format import number

HEADER = ("processes", "memory, MB", "activations, MB", "share", "loss", "difference")


def run(arguments: options.Split) -> Row:
    """Train with each number of processes."""
    title = f"char-lm train --trainer.split time, {arguments.mixer}, context {arguments.context:,}"
    about = measure.heading(title, options.OnDevice(device="cpu"), "precision 32")
    with tempfile.TemporaryDirectory() as name:
        corpus.make_text(Path(name) / "text.txt", 11 * arguments.context + 1000)
        rows = [train(Path(name), processes, arguments) for processes in arguments.processes]
    for row in rows:
        row["share"] = row["activations"] / rows[0]["activations"]
        row["difference"] = abs(row["loss"] - rows[0]["loss"]) / rows[0]["loss"]
    measure.print_table(HEADER, rows, table_row)
    return {"conditions": about, "results": rows}


def train(folder: Path, processes: int, arguments: options.Split) -> Row:
    """Train at the context, and at a 64th of it."""
    words = ["--data.batch_size", "1", "--trainer.split", "time", "--trainer.devices", str(processes)]
    words += ["--model.mixer", arguments.mixer, "--trainer.precision", "32"]
    whole, short = (
        corpus.train(folder, f"{processes}-{part}", arguments.steps, more=[*words, "--data.context", str(context)])
        for part, context in (("whole", arguments.context), ("short", arguments.context // 64))
    )
    activations = whole["memory"] - short["memory"]
    return {"name": f"{processes}", "memory": whole["memory"], "activations": activations, "loss": whole["loss"]}


def table_row(row: Row) -> tuple[str, ...]:
    """The cells of a number of processes."""
    forms = {"memory": ",.0f", "activations": ",.0f", "share": ".2f", "loss": ".6f", "difference": ".0e"}
    return tuple(number(row[key], form) for key, form in forms.items())
