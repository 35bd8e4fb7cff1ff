"""The command `char-lm` and its sub-commands, and the only place that turns errors into a line and an exit code.

A sub-command is a module with `Options` (a dataclass whose docstring describes the command), `USAGE` and
`run(options)`, which returns the exit code; or with `main(words)`, where the words are not only options. A module is
imported when its command is called, so that `--help` and wrong options are answered before torch is loaded.
"""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable

from lm.config.command import parse
from lm.config.fields import nearest
from lm.files import UserError, is_out_of_memory, printable

COMMANDS = {
    "train": ("lm.training.main", "train a model, or go on with a run"),
    "generate": ("lm.sampling.main", "write text with a trained model, or score one"),
    "compare": ("lm.compare.main", "compare runs: tables, curves, a page"),
    "sweep": ("lm.analysis.sweep", "train several systems and seeds, then compare them"),
    "evaluate": ("lm.analysis.evaluate", "losses of trained models, by context length too"),
    "inspect": ("lm.analysis.inspect.main", "what a model does with a text, on a page that runs the model"),
    "data": ("lm.corpora.listing", "the encoded texts that are kept for the next run"),
    "export": ("lm.analysis.export", "a trained model in files to pass on"),
    "bench": ("lm.bench.main", "speed and memory beside other implementations"),
    "reproduction": ("lm.analysis.reproduction", "the paper's claims beside our measurements"),
    "document": ("lm.report.document", "run a command and put what it prints into a document"),
}
"""Sub-commands: the module of each, and its line in `char-lm --help`."""
SPINS = "5000"
"""Times that a waiting thread looks again before it sleeps. With 100, waking up costs a fifth of the speed on an idle
machine, with 1,000 a twentieth; 30,000 are nearly as bad as the library's own number beside other programs."""


def main(words: list[str] | None = None) -> int:
    """Run a command line. Returns the exit code: 0, 1 if a training failed, 2 after an error, 130 after Ctrl-C."""
    words = sys.argv[1:] if words is None else words
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell: `char-lm ... >&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (open until the process ends)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # ? for what the terminal's encoding lacks
    share_cores()
    name = " ".join(["char-lm", *[word for word in words[:1] if word in COMMANDS]])
    return boundary(name, lambda: dispatch(words))


def share_cores() -> None:
    """Let OpenMP's threads wait for each other awake for microseconds, not milliseconds, and then asleep.

    Awake they keep a core from the thread that they wait for, when another program needs a core too. What that costs is
    in docs/performance.md, by `char-lm bench busy`. The library of GCC, which torch has on Linux, reads this when it is
    loaded; a choice of the user stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def dispatch(words: list[str]) -> int:
    """Import the sub-command's module and run it."""
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0
    name, *rest = words
    if name not in COMMANDS:
        raise UserError(f"unknown command {name}{nearest(name, COMMANDS)}; known are {', '.join(COMMANDS)}")
    module = importlib.import_module(COMMANDS[name][0])
    if hasattr(module, "main"):
        return int(module.main(rest))
    return int(module.run(parse(module.Options, rest, f"char-lm {name}", module.USAGE)))


def overview() -> str:
    """The text of `char-lm --help`."""
    lines = [f"  {name:<14} {about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        ["usage: char-lm COMMAND [OPTION ...]", "", *lines, "", "char-lm COMMAND --help lists the options."]
    )


def boundary(prog: str, command: Callable[[], int]) -> int:
    """Run a command. Errors of the user or the system become one line on stderr and an exit code; bugs pass through."""
    try:
        code = _exit_code(command)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has ended
        _drop_stdout()
        return 0
    except KeyboardInterrupt:
        _drop_stdout()
        print("interrupted", file=sys.stderr)
        return 130
    except UserError as error:
        problem = str(error)
    except UnicodeDecodeError as error:
        problem = f"stdin is not UTF-8 text (byte 0x{error.object[error.start]:02x}: {error.reason})"
    except OSError as error:
        _drop_stdout()
        problem = f"{error.filename}: " if error.filename else ""
        problem += error.strerror or str(error)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        problem = "out of memory"
    print(f"{prog}: error: {printable(problem)}", file=sys.stderr)
    return 2


def _exit_code(command: Callable[[], int]) -> int:
    try:
        return command()
    except SystemExit as stopped:  # argparse exits after --help
        if stopped.code:
            raise
        return 0


def _drop_stdout() -> None:
    """Discard buffered output, which Python would otherwise try to write again, and fail, when it exits."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
