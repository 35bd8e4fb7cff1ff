"""Train several mixers x seeds one after another with one base configuration, then compare them.

    python -m lm.sweep --mixers mingru minlstm attention --seeds 1 2 --runs runs/comparison -- [train.py's options]

Each run is train.py in a process of its own. Finished runs are skipped and broken ones resumed, so that the same
command can be given again after an interruption.
"""

import subprocess
import sys
from pathlib import Path

from lm.config import Parser, UserError, parse
from lm.run import Run

TRAIN = Path(__file__).resolve().parent.parent / "train.py"


def command(runs: str, mixer: str, seed: int, options: list[str]) -> list[str] | None:
    """What trains, or resumes, this run; None if it is finished.

    Raises:
        UserError: the folder holds a run with another configuration.
    """
    name = f"{mixer.replace(',', '+').strip('[]').replace(' ', '')}-seed{seed}"
    argv = [*options, "--model.mixer", mixer, "--seed", str(seed), "--runs", runs, "--name", name]
    run = Run(Path(runs) / name)
    if not run.taken:
        return [sys.executable, str(TRAIN), *argv]
    if run.config() != parse(argv)[0]:
        raise UserError(f"{run.path} was made with other options; choose another --runs")
    if run.summary().get("status") in ("finished", "diverged"):
        return None
    return [sys.executable, str(TRAIN), "--resume", str(run.path)]


def execute(words: list[str]) -> int:
    """Run a command to its end. Returns its exit code."""
    return subprocess.run(words, check=False).returncode


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or that of the run that failed."""
    from lm.compare.__main__ import main as compare

    parser = Parser(
        prog="python -m lm.sweep",
        usage="--mixers NAME ... [--seeds N ...] [--runs FOLDER] [--html FILE] [--png FILE] [-- train.py's options]",
        description="Train several mixers and seeds with one configuration, then compare them.",
    )
    parser.add_argument("--mixers", nargs="+", type=str, required=True, help="mixers; a hybrid as [mingru,attention]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], help="seeds of each")
    parser.add_argument("--runs", type=str, default="runs/sweep", help="folder of these runs alone")
    parser.add_argument("--html", type=str, help="write the comparison's page")
    parser.add_argument("--png", type=str, help="write the comparison's picture")
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    own, options = parser.parse_args(argv[:cut]), argv[cut + 1 :]
    try:
        for mixer in own.mixers:
            for seed in own.seeds:
                words = command(own.runs, mixer, seed, options)
                if words and (code := execute(words)) not in (0, 1):
                    return code
    except UserError as error:
        parser.error(str(error))
    outputs = [word for name in ("html", "png") if (file := getattr(own, name)) for word in (f"--{name}", file)]
    compare([own.runs, *outputs])
    return 0


if __name__ == "__main__":
    sys.exit(main())
