"""Train several systems x seeds one after another, then compare them.

    char-lm sweep --mixers mingru minlstm attention --seeds 1 2 --runs runs/comparison -- [options of char-lm train]
    char-lm sweep --configs configs/paper_cpu/mingru.yaml configs/paper_cpu/mamba.yaml --seeds 1 2 3

A system is a mixer in one base configuration, or a configuration of its own, perhaps at several values of one option
(`--vary model.layers 1 2 3`). Each run is `char-lm train` in a process of its own. Finished runs are skipped and
interrupted ones resumed, so that the same command can be given again.

    char-lm sweep --mixers mingru gru --search "optim.muon_lr=log(0.005,0.05)" "model.dropout=0.0..0.3" --study rates

searches for the best values of options instead (`lm.analysis.search`), from any number of processes and machines.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lm.analysis.search.space import read_space
from lm.analysis.search.storage import default_url
from lm.analysis.search.worker import Search, training
from lm.analysis.search.worker import run as search
from lm.compare import main as compare
from lm.config.command import parse
from lm.config.fields import Count, Natural, Output
from lm.config.resolve import parse as parse_config
from lm.files import UserError
from lm.runs.folder import Run

TRAIN = [sys.executable, "-m", "lm", "train"]
USAGE = (
    "--mixers NAME ... | --configs FILE ... [--vary KEY VALUE ...] [--seeds N ...] "
    "[--search KEY=VALUES ... --study NAME [--trials N] [--storage URL]] "
    "[--runs FOLDER] [--html FILE] [--png FILE] [-- options of char-lm train]"
)


@dataclass
class Options:
    """Train several systems and seeds, then compare them; or search for the best values of their options."""

    mixers: list[str] = field(default_factory=list)
    """mixers in one configuration; a hybrid as [mingru,attention]"""
    configs: list[str] = field(default_factory=list)
    """configuration files, one for each system"""
    vary: list[str] = field(default_factory=list)
    """an option of `char-lm train` and the values at which to train each system"""
    seeds: list[Natural] = field(default_factory=lambda: [1])
    """seeds of each"""
    search: list[str] = field(default_factory=list)
    """options of `char-lm train` whose best values to search for: KEY=LOW..HIGH, KEY=log(LOW,HIGH), KEY=A|B|C"""
    study: str | None = None
    """name of the search; workers with the same name and storage share it"""
    trials: Count = 30
    """sets of values to train for each system, over all workers together"""
    storage: str | None = None
    """where the workers of a search meet: postgresql://USER@HOST/DATABASE (default: a SQLite file in --runs)"""
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
    key, *values = own.vary or [""]
    if own.vary and not values:
        raise UserError(f"--vary {key} needs values: --vary model.layers 1 2 3")
    variants = [(f"-{key.split('.')[-1]}{_short(value)}", [f"--{key}", value]) for value in values] or [("", [])]
    for system, argv in systems(own, options):
        for variant, more in variants:
            for seed in own.seeds:
                name = f"{system}{variant}-seed{seed}"
                yield name, [*argv, *more, "--seed", str(seed), "--runs", own.runs, "--name", name]


def systems(own: Options, options: list[str]) -> list[tuple[str, list[str]]]:
    """Name and options of each system.

    Raises:
        UserError: there is none.
    """
    found = [(_short(mixer), [*options, "--model.mixer", mixer]) for mixer in own.mixers]
    found += [(Path(file).stem, ["--config", file, *options]) for file in own.configs]
    if not found:
        raise UserError("give --mixers or --configs")
    return found


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
    """Run a training to its end. Returns its exit code. If this process is stopped, the training saves a checkpoint."""
    with training(words) as process:
        return process.wait()


def main(words: list[str]) -> int:
    """Train all runs and compare them. Returns the exit code: 0, or 1 if a run failed.

    Any other code of a run, such as that of Ctrl-C, ends the sweep and is its own.
    """
    cut = words.index("--") if "--" in words else len(words)
    own, options = parse(Options, words[:cut], "char-lm sweep", USAGE), words[cut + 1 :]
    if own.search or own.study or own.storage:
        code = search(_search(own, options))
        if code in (0, 1) and (own.html or own.png):
            _compare(own)
        return code
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
    _compare(own)
    return failed


def _search(own: Options, options: list[str]) -> Search:
    """What --search and the options beside it ask for.

    Raises:
        UserError: they do not go together, or a value is wrong.
    """
    if not own.search or own.study is None:
        raise UserError("a search needs --search KEY=VALUES ... and --study NAME")
    if own.vary or len(own.seeds) > 1:
        raise UserError("--search goes together neither with --vary nor with several --seeds")
    found = {name: [*argv, "--seed", str(own.seeds[0])] for name, argv in systems(own, options)}
    if len(found) < len(own.mixers) + len(own.configs):
        raise UserError(f"--search needs systems of different names, not {', '.join([*own.mixers, *own.configs])}")
    url = own.storage or default_url(own.runs, own.study)
    return Search(own.study, url, read_space(own.search), found, own.trials, own.runs, own.seeds[0], TRAIN)


def _compare(own: Options) -> None:
    compare.run(compare.Options([own.runs], html=own.html, png=own.png))
