"""Train several systems x seeds one after another, then compare them.

    python -m lm.sweep --mixers mingru minlstm attention --seeds 1 2 --runs runs/comparison -- [train.py's options]
    python -m lm.sweep --configs configs/paper_cpu/mingru.yaml configs/paper_cpu/mamba.yaml --seeds 1 2 3

A system is a mixer in one base configuration, or a configuration of its own, perhaps at several values of one option
(`--vary model.layers 1 2 3`). Each run is train.py in a process of its own. Finished runs are skipped and broken ones
resumed, so that the same command can be given again after an interruption.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.config import Parser, UserError, parse
from lm.run import Run

TRAIN = Path(__file__).resolve().parent.parent / "train.py"


def make_parser() -> Parser:
    """The options, with their help."""
    parser = Parser(
        prog="python -m lm.sweep",
        usage="--mixers NAME ... | --configs FILE ... [--vary KEY VALUE ...] [--seeds N ...] [--runs FOLDER] "
        "[--html FILE] [--png FILE] [-- train.py's options]",
        description="Train several systems and seeds, then compare them.",
    )
    add = parser.add_argument
    add("--mixers", nargs="+", type=str, default=[], help="mixers in one configuration; a hybrid as [mingru,attention]")
    add("--configs", nargs="+", type=str, default=[], help="configuration files, one for each system")
    add("--vary", nargs="+", type=str, help="an option of train.py and the values at which to train each system")
    add("--seeds", nargs="+", type=int, default=[1], help="seeds of each")
    add("--runs", type=str, default="runs/sweep", help="folder of these runs alone")
    add("--html", type=str, help="write the comparison's page")
    add("--png", type=str, help="write the comparison's picture")
    return parser


def runs(own: Any, options: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Name and command line of every run; what the sweep sets goes over train.py's options, and those over a file.

    Raises:
        UserError: there is nothing to train.
    """
    systems = [(_short(mixer), [*options, "--model.mixer", mixer]) for mixer in own.mixers]
    systems += [(Path(file).stem, ["--config", file, *options]) for file in own.configs]
    if not systems:
        raise UserError("give --mixers or --configs")
    key, *values = own.vary or [""]
    if own.vary and not values:
        raise UserError(f"--vary {key} needs values: --vary model.layers 1 2 3")
    variants = [(f"-{key.split('.')[-1]}{_short(value)}", [f"--{key}", value]) for value in values] or [("", [])]
    for system, argv in systems:
        for variant, more in variants:
            for seed in own.seeds:
                name = f"{system}{variant}-seed{seed}"
                yield name, [*argv, *more, "--seed", str(seed), "--runs", own.runs, "--name", name]


def _short(value: str) -> str:
    return value.replace(",", "+").strip("[]").replace(" ", "")


def command(path: Path, argv: list[str]) -> list[str] | None:
    """What trains, or resumes, the run in this folder; None if it is finished.

    Raises:
        UserError: the folder holds a run with another configuration.
    """
    config, _ = parse(argv)
    run = Run(path)
    if not run.taken:
        return [sys.executable, str(TRAIN), *argv]
    if run.config() != config:
        raise UserError(f"{run.path} was made with other options; choose another --runs")
    if run.summary().get("status") in ("finished", "diverged"):
        return None
    return [sys.executable, str(TRAIN), "--resume", str(run.path)]


def execute(words: list[str]) -> int:
    """Run a command to its end. Returns its exit code."""
    return subprocess.run(words, check=False).returncode


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or that of the run that failed."""
    from lm.compare.__main__ import check_outputs
    from lm.compare.__main__ import main as compare

    parser = make_parser()
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    own, options = parser.parse_args(argv[:cut]), argv[cut + 1 :]
    try:
        check_outputs((own.html, own.png))
        every = [(Path(own.runs) / name, words) for name, words in runs(own, options)]
        for path, words in every:  # what is wrong with the last is said before the first has trained for hours
            command(path, words)
        for path, words in every:
            todo = command(path, words)
            if todo and (code := execute(todo)) not in (0, 1):
                return code
    except UserError as error:
        parser.error(str(error))
    outputs = [word for name in ("html", "png") if (file := getattr(own, name)) for word in (f"--{name}", file)]
    compare([own.runs, *outputs])
    return 0


if __name__ == "__main__":
    sys.exit(main())
