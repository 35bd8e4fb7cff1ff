"""The command line of the benchmarks. Imports torch only when there is something to measure."""

import importlib
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lm import bench
from lm.config import Parser, UserError
from lm.document import command_line, inserted


@dataclass(frozen=True)
class Option:
    """One option of a subcommand; a list as default means that it takes several values. `quick` is for tests."""

    name: str
    help: str
    default: Any = None
    quick: Any = None
    kind: Any = str


def repeat(times: int) -> Option:
    """How often each thing is timed."""
    return Option("repeat", "timings of each, taken in turns", times, 2, int)


DTYPES = ("float32", "bfloat16", "float16")
WHERE = (
    Option("device", "cpu, cuda, or auto: a GPU if there is one", "auto"),
    Option("dtype", f"{', '.join(DTYPES)}", "float32"),
)
CELLS = Option("cells", "mingru and minlstm", ["mingru", "minlstm"])
MIXERS = Option("mixers", "which ones (default: all)", [], ["mingru"])
PLOT = Option("plot", "draw a picture into this PNG file")
POWERS = [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]

COMMANDS: dict[str, tuple[str, tuple[Option, ...]]] = {
    "overhead": (
        "train.py's seconds per step over those of a bare loop with the same model, batches and optimiser",
        (Option("steps", "steps in one run", 60, 20, int), repeat(3)),
    ),
    "cell": (
        "one cell: our backends against other implementations, forward and backward",
        (
            Option("sizes", "B x T x D", ["64x256x768", "8x4096x384", "1x65536x384"], ["2x64x16"]),
            CELLS,
            Option("longest_loop", "largest T at which the Python loop runs", 4096, None, int),
            *WHERE,
            repeat(7),
        ),
    ),
    "busy": (
        "one cell alone, and while another process keeps a core busy",
        (
            Option("sizes", "B x T x D", ["64x256x768"], ["2x64x16"]),
            CELLS,
            Option("longest_loop", "largest T at which the Python loop runs", 4096, None, int),
            *WHERE,
            repeat(7),
        ),
    ),
    "train": (
        "whole models, forward + backward, per mixer, against minGRU-pytorch's minLM",
        (
            Option("sizes", "B x T", ["16x256", "4x1024", "1x4096"], ["2x32"]),
            Option("mixers", "which ones (default: all but the step-by-step references)", [], ["mingru"]),
            Option("width", "channels", 384, 32, int),
            Option("layers", "number of blocks; attention takes twice as many", 3, 1, int),
            Option("optimizer", "muon or adamw: time its step as well"),
            Option("gemm", "the limit: multiply square matrices of this size", 2048, 128, int),
            *WHERE,
            repeat(5),
        ),
    ),
    "length": (
        "time and peak memory of training one mixer, against sequence length",
        (
            Option("lengths", "sequence lengths", POWERS, [16, 32], int),
            MIXERS,
            Option("batch", "sequences, the same at every length", 8, 2, int),
            Option("width", "channels", 128, 16, int),
            Option("expansion", "hidden channels as a multiple of the width", 1.0, None, float),
            Option("convolution", "size of the causal convolution, 0 for none", 0, None, int),
            Option("limit", "stop a mixer when one training step takes longer, in seconds", 20.0, None, float),
            PLOT,
            *WHERE,
            repeat(3),
        ),
    ),
    "numerics": (
        "error of values and gradients against float64 at growing length, ours and the paper's log-space form",
        (
            Option("lengths", "sequence lengths", POWERS, [64, 128], int),
            CELLS,
            Option("width", "channels", 64, 8, int),
            PLOT,
            *WHERE,
        ),
    ),
    "sample": (
        "characters per second of decoding: against other samplers, many at once, and after a long time",
        (
            Option("parts", "which tables: peers, batch, length (default: all)", [], None),
            Option("widths", "channels of our models; batch and length take the first", [128, 384], [16], int),
            Option("layers", "number of blocks", 3, 1, int),
            Option("batch", "samples at once", 64, 5, int),
            Option("generated", "characters written before timing; try 1000000", [1000, 100_000], [20, 40], int),
            Option("mixers", "whose time is taken after a long time", ["mingru", "attention"], None),
            Option("window", "attention's", 256, 16, int),
            Option("chars", "characters in one timing; a fiftieth of it where each takes milliseconds", 1000, 100, int),
            WHERE[0],
            repeat(7),
        ),
    ),
    "parameters": (
        "parameters per cell over those of the traditional GRU and LSTM cells, counted from the modules",
        (
            Option("expansions", "hidden channels as a multiple of the width", [1, 2, 3, 4], None, int),
            Option("width", "channels", 384, 32, int),
        ),
    ),
}


def make_parser(command: str) -> Parser:
    """The parser of one subcommand. Defaults are filled in later, since --quick has others."""
    description, options = COMMANDS[command]
    parser = Parser(prog=f"python -m lm.bench {command}", usage="[--option value ...]", description=description)
    for option in options:
        several: dict[str, Any] = {"nargs": "+"} if isinstance(option.default, list) else {}
        shown = " ".join(map(str, option.default)) if several else option.default
        text = option.help + (f" (default: {shown})" if shown not in (None, "") else "")
        parser.add_argument(f"--{option.name}", type=option.kind, help=text, **several)
    parser.add_argument("--json", type=str, help="write the numbers to this file")
    parser.add_argument("--insert", type=str, help="put the table between this document's marks `bench NAME [PARTS]`")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    return parser


def read_arguments(parser: Parser, command: str, argv: list[str]) -> SimpleNamespace:
    """Options in the order: command line, --quick, defaults. Raises UserError for a wrong one."""
    values = vars(parser.parse_args(argv))
    for option in COMMANDS[command][1]:
        fallback = option.quick if values["quick"] and option.quick is not None else option.default
        if values[option.name] is None:
            values[option.name] = fallback
        given = values[option.name]
        least = 0 if option.name == "convolution" else 1
        if option.kind is int and any(value < least for value in _several(given)):
            raise UserError(f"--{option.name} must be at least {least}, not {given}")
        if option.name == "width" and given % 2:
            raise UserError(f"--width must be even, not {given}")
    for name, known in (("dtype", DTYPES), ("device", ("auto", "cpu", "cuda")), ("optimizer", ("muon", "adamw"))):
        if values.get(name) is not None and values[name] not in known:
            raise UserError(f"--{name}: expected {' or '.join(known)}, not {values[name]}")
    return SimpleNamespace(**values)


def _several(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


def usage() -> Parser:
    """The parser that explains which subcommands there are."""
    listing = "   ".join(f"{name}: {description}." for name, (description, _) in COMMANDS.items())
    parser = Parser(
        prog="python -m lm.bench",
        usage=f"{{{','.join(COMMANDS)}}} [--quick] [--json FILE] [--option value ...]",
        description=f"{bench.__doc__} {listing} SUBCOMMAND --help lists the options.",
    )
    parser.add_argument("benchmark", choices=list(COMMANDS), help="what to measure")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run one benchmark; print its table, and write its numbers to --json."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] not in COMMANDS:
        usage().parse_args(words[:1])
    command, *options = words
    parser = make_parser(command)
    try:
        arguments = read_arguments(parser, command, options)
        if arguments.json and not Path(arguments.json).parent.is_dir():
            raise UserError(f"--json: there is no folder {Path(arguments.json).parent}")
        document = Path(arguments.insert) if arguments.insert else None
        mark = " ".join(["bench", command, *getattr(arguments, "parts", [])])
        with inserted(document, mark, command_line("lm.bench", words)):
            result = importlib.import_module(f"lm.bench.{command}").run(arguments)
        if "conditions" in result:
            result["warnings"] = importlib.import_module("lm.bench.measure").WARNINGS
    except UserError as error:
        parser.error(str(error))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(finite(result), indent=2) + "\n", encoding="utf-8")


def finite(value: Any) -> Any:
    """The same with null for infinities, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    main()
