"""The command `char-lm` and its sub-commands, and the one place where errors become a line and an exit code.

A sub-command is a module with `Options` (a dataclass whose docstring describes it), `USAGE` and `run(options)`, which
returns the exit code; or, where words are more than options, with `main(words)`. Modules are imported when they are
asked for: `--help` and wrong options answer before torch is loaded.
"""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable

from lm.config.command import parse
from lm.config.fields import nearest
from lm.files import UserError, printable

COMMANDS = {
    "train": ("lm.training.main", "train a model, or go on with a run"),
    "generate": ("lm.sampling.main", "write text with a trained model, or score one"),
    "compare": ("lm.compare.main", "compare runs: tables, curves, a page"),
    "sweep": ("lm.analysis.sweep", "train several systems and seeds, then compare them"),
    "evaluate": ("lm.analysis.evaluate", "losses of trained models, by context length too"),
    "export": ("lm.runs.export", "a trained model as a folder of data to pass on"),
    "bench": ("lm.bench.main", "speed and memory beside other implementations"),
    "reproduction": ("lm.analysis.reproduction", "the paper's claims beside our measurements"),
    "document": ("lm.report.document", "run a command and put what it prints into a document"),
}
"""Sub-commands: the module of each, and what it is for."""


def main(words: list[str] | None = None) -> int:
    """Run a command line. Returns the exit code: 0; 1 for a training that failed; 2 for a mistake; 130 for Ctrl-C."""
    words = sys.argv[1:] if words is None else words
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without a sign shows ? for it
    name = " ".join(["char-lm", *[word for word in words[:1] if word in COMMANDS]])
    return boundary(name, lambda: dispatch(words))


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
    """What `char-lm --help` prints."""
    lines = [f"  {name:<14} {about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        ["usage: char-lm COMMAND [OPTION ...]", "", *lines, "", "char-lm COMMAND --help lists the options."]
    )


def boundary(prog: str, command: Callable[[], int]) -> int:
    """Run a command; whatever a user or the system may cause becomes one line on stderr and an exit code."""
    problem = ""
    try:
        code = command()
        sys.stdout.flush()
        return code
    except UserError as error:
        problem = str(error)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        _drop_stdout()
        return 0
    except UnicodeDecodeError as error:
        problem = f"stdin is not UTF-8 text (byte 0x{error.object[error.start]:02x}: {error.reason})"
    except OSError as error:
        _drop_stdout()
        name = f"{error.filename}: " if error.filename else ""
        problem = f"{name}{error.strerror or error}"
    except MemoryError:
        problem = "out of memory"
    except KeyboardInterrupt:
        _drop_stdout()
        print("interrupted", file=sys.stderr)
        return 130
    print(f"{prog}: error: {printable(problem)}", file=sys.stderr)
    return 2


def _drop_stdout() -> None:
    """What is still buffered cannot be written, or is no longer wanted: Python would fail on it once more at the end."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
