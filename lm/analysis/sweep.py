"""Train several systems x seeds one after another, then compare them.

    char-lm sweep --mixers mingru minlstm attention --seeds 1 2 --runs runs/comparison -- [options of char-lm train]
    char-lm sweep --configs configs/paper_cpu/mingru.yaml configs/paper_cpu/mamba.yaml --seeds 1 2 3

A system is a mixer in one base configuration, or a configuration of its own, perhaps at several values of one option
(`--vary model.layers 1 2 3`). Each run is `char-lm train` in a process of its own. Finished runs are skipped and broken ones
resumed, so that the same command can be given again after an interruption.
"""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lm.compare import main as compare
from lm.config.command import parse
from lm.config.fields import Output
from lm.config.resolve import parse as parse_config
from lm.files import UserError
from lm.runs.folder import Run

TRAIN = [sys.executable, "-m", "lm", "train"]
USAGE = (
    "--mixers NAME ... | --configs FILE ... [--vary KEY VALUE ...] [--seeds N ...] [--runs FOLDER] "
    "[--html FILE] [--png FILE] [-- options of char-lm train]"
)


@dataclass
class Options:
    """Train several systems and seeds, then compare them."""

    mixers: list[str] = field(default_factory=list)
    """mixers in one configuration; a hybrid as [mingru,attention]"""
    configs: list[str] = field(default_factory=list)
    """configuration files, one for each system"""
    vary: list[str] = field(default_factory=list)
    """an option of `char-lm train` and the values at which to train each system"""
    seeds: list[int] = field(default_factory=lambda: [1])
    """seeds of each"""
    runs: str = "runs/sweep"
    """folder of these runs alone"""
    html: Output | None = None
    """write the comparison's page"""
    png: Output | None = None
    """write the comparison's picture"""


def runs(own: Options, options: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Name and command line of every run; what the sweep sets goes over options of char-lm train, and those over a file.

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
    config = parse_config(argv)
    run = Run(path)
    if not run.exists:
        return [*TRAIN, *argv]
    if run.config() != config:
        raise UserError(f"{run.path} was made with other options; choose another --runs")
    if run.summary().get("status") in ("finished", "diverged"):
        return None
    return [*TRAIN, "--resume", str(run.path)]


def execute(words: list[str]) -> int:
    """Run a command to its end. Returns its exit code."""
    return subprocess.run(words, check=False).returncode


def main(words: list[str]) -> int:
    """Returns the exit code: 0, or that of the run that failed."""
    cut = words.index("--") if "--" in words else len(words)
    own, options = parse(Options, words[:cut], "char-lm sweep", USAGE), words[cut + 1 :]
    every = [(Path(own.runs) / name, argv) for name, argv in runs(own, options)]
    for path, argv in every:  # what is wrong with the last is said before the first has trained for hours
        command(path, argv)
    for path, argv in every:
        todo = command(path, argv)
        if todo and (code := execute(todo)) not in (0, 1):
            return code
    return compare.run(compare.Options([own.runs], html=own.html, png=own.png))
