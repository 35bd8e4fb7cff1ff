"""`python -m lm.compare RUN_OR_GLOB ...`: which run converges faster?"""

import csv
import errno
import io
import json
import math
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lm.compare import table, terminal
from lm.compare.page import encode, payload, render
from lm.compare.runs import LOSSES, Reader, RunData
from lm.config import Parser, UserError, shorten
from lm.document import halves, insert
from lm.files import CONTROL
from lm.run import AXES

PORT = 8321


def make_parser() -> Parser:
    """The parser of `python -m lm.compare`."""
    parser = Parser(
        prog="python -m lm.compare",
        usage="[RUN_OR_GLOB ...] [--html FILE] [--png FILE] [--text] [--serve] [--target LOSS]",
        description="Compare runs: results, time to a target loss, loss curves. Runs whose configurations differ only "
        "in seed and name are taken together. Reads run folders only, also while they are being written.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="*", type=str, help="run folders, folders of them, or globs (default: runs)")
    parser.add_argument("--html", type=str, help="write one self-contained page")
    parser.add_argument("--png", type=str, help="write the loss curves as a picture")
    parser.add_argument("--json", type=str, help="write the tables for other programs; - for standard output")
    parser.add_argument(
        "--insert", type=str, help="put the tables into this document, between its marks `results`, or FILE#MARK"
    )
    parser.add_argument("--csv", type=str, help="write a row for each run; - for standard output")
    parser.add_argument("--text", action="store_true", help="draw the loss curves in the terminal")
    parser.add_argument("--target", type=float, help="loss to reach (default: the worst run's best)")
    parser.add_argument("--metric", type=str, default=LOSSES[0], help="loss to compare: val/loss or val/loss_streaming")
    parser.add_argument(
        "--x", type=str, default="step", help="x-axis of --text: " + ", ".join(AXES[:-1]) + f" or {AXES[-1]}"
    )
    parser.add_argument("--serve", action="store_true", help="show the page on this machine, and follow the runs")
    parser.add_argument("--port", type=int, default=PORT, help="port of --serve")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Compare. Returns the exit code: 0, or 2 for a mistake in the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without a sign shows ? for it
    parser = make_parser()
    options = parser.parse_args(argv)
    try:
        check(options)
        reader = Reader(options.runs or ["runs"])
        return serve(reader, options) if options.serve else show(reader, options)
    except UserError as error:
        parser.error(str(error))
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def check(options: Any) -> None:
    """Refuse values out of range.

    Raises:
        UserError: names the option, what it must be, and what it is.
    """
    if options.metric not in LOSSES:
        raise UserError(f"--metric: expected {' or '.join(LOSSES)}, not {options.metric}")
    if options.x not in AXES:
        raise UserError(f"--x: expected {' or '.join(AXES)}, not {options.x}")
    if options.target is not None and not (math.isfinite(options.target) and options.target > 0):
        raise UserError(f"--target must be a number above 0, not {options.target}")
    if not 0 <= options.port < 65536:
        raise UserError(f"--port must be between 0 and 65535, not {shorten(options.port)}")
    document, _, mark = (options.insert or "").partition("#")
    if document:
        halves(Path(document), mark or "results")
    check_outputs((options.html, options.png, options.json, options.csv, document))


def show(reader: Reader, options: Any) -> int:
    """Print the tables, and write the files that were asked for."""
    runs = reader.read()
    if not runs:
        raise UserError(f"no run in {', '.join(reader.skipped)}; make one with: python train.py")
    groups, target, notes = compare(runs, reader, options)
    quiet = "-" in (options.json, options.csv)
    if not quiet:
        print("\n".join(report(groups, target, options)))
    for note in notes[:20]:
        print(f"note: {note}", file=sys.stderr)
    if len(notes) > 20:
        print(f"note: and {len(notes) - 20} more", file=sys.stderr)
    everything = table.as_json(runs, groups, options.metric, target, notes)
    write(options.json, lambda: json.dumps(everything, indent=2, allow_nan=False) + "\n")
    write(options.csv, lambda: as_csv(everything["runs"]))
    if options.insert:
        document, _, mark = options.insert.partition("#")
        insert(Path(document), mark or "results", "\n".join(report(groups, target, options)))
    write(options.html, lambda: as_page(groups, notes, options))
    if options.png:
        from lm.compare.picture import save_png

        with writing(options.png):
            save_png(Path(options.png), groups, options.metric, target)
    return 0


def as_page(groups: list[table.Group], notes: list[str], options: Any) -> str:
    """The page, for a file."""
    runs = [run for item in groups for run in item.runs]
    data = payload(groups, options.metric, options.target, notes)
    return render(data | {"runs": [encode(run, len(runs)) for run in runs], "order": [str(run.path) for run in runs]})


def compare(runs: list[RunData], reader: Reader, options: Any) -> tuple[list[table.Group], float | None, list[str]]:
    """Groups, target and warnings."""
    target = options.target if options.target is not None else table.default_target(runs, options.metric)
    return table.group(runs), target, table.warnings(runs, reader.skipped)


def report(groups: list[table.Group], target: float | None, options: Any) -> list[str]:
    """What goes to the terminal."""
    lines = terminal.results(groups)
    if target is None:
        lines += ["", "no validation yet"]
    else:
        lines += ["", *terminal.to_target(table.arrivals(groups, options.metric, target), options.metric, target)]
    if options.text:
        lines += ["", *terminal.curves(groups, options.metric, options.x)]
    return lines


def write(path: str | None, make: Any) -> None:
    """Write a file, or standard output for `-`; nothing where no path was given."""
    if path == "-":
        sys.stdout.write(make())
    elif path:
        text = make()
        with writing(path):
            Path(path).write_text(text, encoding="utf-8")


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """What the system has against writing there, as one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def check_outputs(paths: Iterable[str | None]) -> None:
    """Refuse what cannot be written before any work is done for it.

    Raises:
        UserError: names the path, and what is in the way.
    """
    for path in paths:
        if not path or path == "-":
            continue
        if CONTROL.search(path):
            raise UserError(f"cannot write {path!r}: a control character in its name")
        with writing(path):
            folder = os.stat(Path(path).parent or ".")
            if not stat.S_ISDIR(folder.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            if Path(path).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not os.access(path if Path(path).exists() else Path(path).parent, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def as_csv(rows: list[dict[str, Any]]) -> str:
    """A row for each run; text that a spreadsheet would take for a formula gets an apostrophe."""
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


def serve(reader: Reader, options: Any) -> int:
    """Answer until interrupted."""
    from lm.compare.server import Feed, make_server

    def describe(runs: list[RunData]) -> dict[str, Any]:
        groups, _, notes = compare(runs, reader, options)
        return payload(groups, options.metric, options.target, notes)

    server = make_server(Feed(reader, describe), options.port)
    print(f"http://127.0.0.1:{server.server_port}/ follows the runs; stop with Ctrl-C", file=sys.stderr, flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
