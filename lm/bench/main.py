"""`char-lm bench NAME`: one benchmark. Imports torch only when there is something to measure."""

import importlib
import inspect
import json
from pathlib import Path

from lm.bench.options import BENCHMARKS, Common, Quick, Step
from lm.config.command import Parser, command_line
from lm.config.fields import fields, nearest
from lm.files import UserError, atomic_write
from lm.report.document import inserted
from lm.report.format import finite


def main(words: list[str]) -> int:
    """Run one benchmark; print its table, and write its numbers to --json."""
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0
    name, *rest = words
    if name not in BENCHMARKS:
        raise UserError(f"unknown benchmark {name}{nearest(name, BENCHMARKS)}; known are {', '.join(BENCHMARKS)}")
    options = read(name, rest)
    mark = " ".join(["bench", name, *getattr(options, "parts", [])])
    with inserted(options.insert, mark, command_line(f"char-lm bench {name}", options)):
        result = importlib.import_module(f"lm.bench.{name}").run(options)
    if "conditions" in result:
        result["warnings"] = importlib.import_module("lm.bench.measure").WARNINGS
    if options.json:
        atomic_write(Path(options.json), json.dumps(finite(result), indent=2) + "\n")
    return 0


def read(name: str, words: list[str]) -> Common:
    """The options of a benchmark: the command line over --quick over the defaults."""
    kind, more = BENCHMARKS[name], {}
    if issubclass(kind, Step):
        words, training = split(words, kind)
        more = {"train": training}
    usage = "[--option value ...]" + (" [options of char-lm train]" if more else "")
    given = Parser(f"char-lm bench {name}", usage, kind).read(words) | more
    for width in (given.get("width", 2), *given.get("widths", ())):
        if width % 2:
            raise UserError(f"a width must be even, not {width}")
    quick = {key: mark.value for key, field in fields(kind).items() for mark in field.marks if isinstance(mark, Quick)}
    return kind(**((quick if given.get("quick") else {}) | given))


def split(words: list[str], kind: type) -> tuple[list[str], list[str]]:
    """A command line as the words of the options of `kind`, and all others, each option with its values."""
    own = {"-h", "--help", *(field.flag for field in fields(kind).values())}
    parts: tuple[list[str], list[str]] = [], []
    current = parts[1]
    for word in words:
        if word == "-h" or (word.startswith("--") and " " not in word):
            current = parts[word.split("=")[0] not in own]
        current.append(word)
    return parts


def overview() -> str:
    """What `char-lm bench --help` prints."""
    lines = [f"  {name:<12} {' '.join((inspect.getdoc(kind) or '').split())}" for name, kind in BENCHMARKS.items()]
    head = "usage: char-lm bench NAME [--quick] [--json FILE] [--option value ...]"
    return "\n".join([head, "", *lines, "", "char-lm bench NAME --help lists the options of one."])
