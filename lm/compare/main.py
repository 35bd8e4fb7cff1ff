"""`char-lm compare`: which run converges faster?"""

import csv
import io
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from lm.compare import table, terminal
from lm.compare.page import page
from lm.compare.picture import save_png
from lm.compare.runs import Reader
from lm.config.fields import POSITIONAL, Output, Range
from lm.files import UserError, atomic_write
from lm.report.document import halves, insert
from lm.runs.metrics import AXES

USAGE = "[RUN_OR_GLOB ...] [--html FILE] [--png FILE] [--text] [--serve] [--target LOSS]"


@dataclass
class Options:
    """Compare runs: results, time to a target loss, loss curves. Runs whose configurations differ only in seed and name
    are taken together. Reads run folders only, also while they are being written."""

    runs: Annotated[list[str], POSITIONAL] = field(default_factory=lambda: ["runs"])
    """run folders, folders of them, or globs"""
    html: Output | None = None
    """write one self-contained page"""
    png: Output | None = None
    """write the loss curves as a picture: against steps on the left, against seconds on the right"""
    timed: list[str] = field(default_factory=list)
    """take the right half of --png from these runs, whose budget is time, instead"""
    json: Output | None = None
    """write the tables for other programs; - for standard output"""
    insert: str | None = None
    """put the tables into this document, between its marks `results`, or FILE#MARK"""
    csv: Output | None = None
    """write a row for each run; - for standard output"""
    text: bool = False
    """draw the loss curves in the terminal"""
    target: Annotated[float, Range(above=0, text="a number above 0")] | None = None
    """loss to reach (default: the worst run's best)"""
    metric: Literal["val/loss", "val/loss_streaming"] = "val/loss"
    """loss to compare: val/loss or val/loss_streaming"""
    x: Literal["step", "chars", "train_seconds", "flops"] = "step"
    """x-axis of --text, and of the right half of --png if it is not step: chars, train_seconds or flops"""
    serve: bool = False
    """show the page on this machine, and follow the runs"""
    port: Annotated[int, Range(least=0, most=65535, text="between 0 and 65535")] = 8321
    """port of --serve"""


def run(options: Options) -> int:
    """Compare the runs. Returns the exit code."""
    if options.insert:
        halves(options.insert, "results")
    reader = Reader(options.runs or ["runs"])
    return serve(reader, options) if options.serve else show(reader, options)


def show(reader: Reader, options: Options) -> int:
    """Print the tables, and write the files that were asked for."""
    runs = reader.read()
    if not runs:
        raise UserError(f"no run in {', '.join(reader.skipped)}; make one with: char-lm train")
    groups, notes = table.group(runs), table.warnings(runs, reader.skipped)
    timed = table.group(Reader(options.timed).read()) if options.timed else groups
    target = options.target if options.target is not None else table.default_target(runs, options.metric)
    lines = report(groups, target, options, table.are_comparable(notes))
    if "-" not in (options.json, options.csv):
        print("\n".join(lines))
    more = [f"and {len(notes) - 20} more"] if len(notes) > 20 else []
    for note in notes[:20] + more:
        print(f"note: {note}", file=sys.stderr)
    everything = table.as_json(runs, groups, options.metric, target, notes)
    write(options.json, lambda: json.dumps(everything, indent=2, allow_nan=False) + "\n")
    write(options.csv, lambda: as_csv(everything["runs"]))
    if options.insert:
        insert(options.insert, "results", "\n".join(lines))
    folder = Path(options.html or "").parent
    write(options.html, lambda: page(runs, options.metric, options.target, reader.skipped, folder))
    if options.png:
        right = "train_seconds" if options.x == "step" else options.x
        save_png(options.png, groups, timed, options.metric, target, right)
        print(f"wrote {options.png}", file=sys.stderr)
    return 0


def report(groups: list[table.Group], target: float | None, options: Options, comparable: bool) -> list[str]:
    """The tables for the terminal, and the curves of --text; sentences that compare only what is comparable."""
    sentence = table.at_equal_budget(groups, options.metric) if comparable else ""
    lines = [*([sentence, ""] if sentence else []), *terminal.results(groups), ""]
    if target is None:
        lines.append("no validation yet")
    else:
        found = table.arrivals(groups, options.metric, target)
        lines += terminal.to_target(found, options.metric, target, comparable)
    return [*lines, "", *terminal.curves(groups, options.metric, options.x)] if options.text else lines


def write(path: str | None, make: Callable[[], str]) -> None:
    """Write what `make` returns into a file, or to standard output for `-`; None writes nothing."""
    if path == "-":
        sys.stdout.write(make())
    elif path:
        atomic_write(Path(path), make())
        print(f"wrote {path}", file=sys.stderr)


def as_csv(rows: list[dict[str, Any]]) -> str:
    """A row for each run. Text that a spreadsheet would read as a formula gets an apostrophe in front."""
    flat = [
        {key: value for key, value in row.items() if key != "to_target"}
        | {f"target_{axis}": (row["to_target"] or {}).get(axis) for axis in AXES}
        for row in rows
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, flat[0], lineterminator="\n")
    writer.writeheader()
    for row in flat:
        writer.writerow({k: f"'{v}" if isinstance(v, str) and v[:1] in "=+-@" and v else v for k, v in row.items()})
    return text.getvalue()


def serve(reader: Reader, options: Options) -> int:
    """Serve the page until Ctrl-C."""
    from lm.compare.server import Feed, make_server

    with make_server(Feed(reader, options.metric, options.target), options.port) as server:
        address = f"http://127.0.0.1:{server.server_port}/"
        print(f"{address} follows the runs; stop with Ctrl-C", file=sys.stderr, flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0
