"""Train several systems x seeds one after another, then compare them.

    char-lm sweep --mixers mingru minlstm attention --seeds 1 2 --runs runs/comparison -- [options of char-lm train]
    char-lm sweep --configs configs/paper_cpu/mingru.yaml configs/paper_cpu/mamba.yaml --seeds 1 2 3

A system is a mixer in one base configuration, or a configuration of its own, perhaps at several values of one option
(`--vary model.layers 1 2 3`). Each run is `char-lm train` in a process of its own. Finished runs are skipped and
interrupted ones resumed, so that the same command can be given again.
"""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lm.compare import main as compare
from lm.config.command import parse
from lm.config.fields import Natural, Output
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
    seeds: list[Natural] = field(default_factory=lambda: [1])
    """seeds of each"""
    runs: str = "runs/sweep"
    """folder for these runs and no others"""
    html: Output | None = None
    """write the comparison's page"""
    png: Output | None = None
    """write the comparison's picture"""


def runs(own: Options, options: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Name and options of each run. The sweep's own go before those for char-lm train, and those before a file's.

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
    """The command that trains or resumes the run in this folder; None if it has ended.

    Raises:
        UserError: the folder holds a run with another configuration.
    """
    config = parse_config(argv)
    run = Run(path)
    if not run.exists:
        return [*TRAIN, *argv]
    saved = run.config()
    if config.trainer.precision == "auto":  # the run has what that meant on its machine
        config.trainer.precision = saved.trainer.precision
    if saved != config:
        raise UserError(f"{run.path} was made with other options; choose another --runs")
    if run.summary().get("status") in ("finished", "diverged"):
        return None
    return [*TRAIN, "--resume", str(run.path)]


def execute(words: list[str]) -> int:
    """Run a command to its end. Returns its exit code."""
    return subprocess.run(words, check=False).returncode


def main(words: list[str]) -> int:
    """Train all runs and compare them. Returns the exit code: 0, or 1 if a run failed.

    Any other code of a run, such as that of Ctrl-C, ends the sweep and is its own.
    """
    cut = words.index("--") if "--" in words else len(words)
    own, options = parse(Options, words[:cut], "char-lm sweep", USAGE), words[cut + 1 :]
    every = [(Path(own.runs) / name, argv) for name, argv in runs(own, options)]
    for path, argv in every:  # a mistake in the last is reported before the first has trained for hours
        command(path, argv)
    failed = 0
    for path, argv in every:
        todo = command(path, argv)
        code = execute(todo) if todo else int(Run(path).summary().get("status") == "diverged")
        if code not in (0, 1):
            return code
        failed = max(failed, code)
    compare.run(compare.Options([own.runs], html=own.html, png=own.png))
    return failed
