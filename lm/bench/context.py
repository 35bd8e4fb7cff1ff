"""Contexts of growing length in one training step: memory and speed of `char-lm train`, with trainer.chunk and without.

Every run is a process of its own with one sequence in a batch. Memory is anonymous memory, as in `lm.bench.corpus`.
Without chunks, contexts above --whole are left out: memory grows with them.
"""

import tempfile
from pathlib import Path

from lm.bench import corpus, measure, options
from lm.bench.measure import Row
from lm.report.format import number

HEADER = ("context", "at once", "memory, MB", "chars/s", "time per character")


def run(arguments: options.Context) -> Row:
    """Train at each context, whole and in chunks."""
    title = f"char-lm train by context, {arguments.mixer}"
    about = measure.heading(title, options.OnDevice(device="cpu"), "precision auto")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        corpus.make_text(Path(name) / "text.txt", 11 * max(arguments.contexts) + 1000)
        for context in arguments.contexts:
            for chunk in (0, arguments.chunk):
                if (chunk == 0 and context <= arguments.whole) or 0 < chunk < context:
                    rows.append(train(Path(name), context, chunk, arguments))
    for row in rows:
        row["slower"] = rows[0]["speed"] / row["speed"]
    measure.print_table(HEADER, rows, table_row)
    return {"conditions": about, "results": rows}


def train(folder: Path, context: int, chunk: int, arguments: options.Context) -> Row:
    """Three steps or more, and about `characters` characters, at one context."""
    steps = max(3, arguments.characters // context)
    words = ["--data.context", str(context), "--data.batch_size", "1", "--trainer.chunk", str(chunk)]
    found = corpus.train(folder, f"{context}-{chunk}", steps, context, [*words, "--model.mixer", arguments.mixer])
    return {"name": f"{context:,}", "chunk": chunk, **found}


def table_row(row: Row) -> tuple[str, ...]:
    """The cells of a run."""
    chunk = f"{row['chunk']:,}" if row["chunk"] else "all"
    return chunk, number(row["memory"], ",.0f"), number(row["speed"], ",.0f"), number(row["slower"], ".2f") + " x"
