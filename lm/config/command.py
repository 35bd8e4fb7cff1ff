"""Command lines from options dataclasses: short help, and errors as one line with the nearest right name."""

import argparse
import inspect
import shlex
import textwrap
from dataclasses import MISSING
from typing import Any, NoReturn, TypeVar, get_args, get_origin

from lm.config.fields import OUTPUT, POSITIONAL, REPEATED, Field, docstrings, fields, fits, nearest
from lm.config.strict_yaml import read_yaml
from lm.files import UserError, check_output

Options = TypeVar("Options")


class Parser(argparse.ArgumentParser):
    """The parser of a command whose options are the fields of dataclasses.

    Args:
        prog: the command, as it is typed.
        usage: the arguments in short.
        options: the dataclasses; the docstring of the first describes the command.
        dashes: what error messages write before an option's name.
    """

    def __init__(self, prog: str, usage: str, *options: type, dashes: str = "--") -> None:
        super().__init__(prog=prog, usage=usage, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        self.options, self.dashes = options, dashes
        self.fields = {key: field for cls in options for key, field in fields(cls).items()}
        for field in self.fields.values():
            self._add(field)

    def _add(self, field: Field) -> None:
        settings: dict[str, Any] = {}
        several = get_origin(field.kind) is list
        if field.kind is bool and "." not in field.key:
            settings = {"action": "store_const", "const": "true"}
        elif REPEATED in field.marks:
            settings = {"action": "append"}
        elif several:
            settings = {"nargs": "*" if POSITIONAL in field.marks and field.default is not MISSING else "+"}
        elif POSITIONAL in field.marks and field.default is not MISSING:
            settings = {"nargs": "?"}
        self.add_argument(field.key if POSITIONAL in field.marks else f"--{field.key}", **settings)

    def read(self, words: list[str]) -> dict[str, Any]:
        """The options that are given, by their full names, of the right types and within their bounds.

        Raises:
            UserError: an option is unknown, or its value is wrong.
        """
        given = {}
        for key, typed in vars(self.parse_args(words)).items():
            field = self.fields[key]
            given[key] = _read(typed, field.kind)
            field.check(given[key], "" if POSITIONAL in field.marks else self.dashes)
            if OUTPUT in field.marks and given[key] is not None:
                check_output(given[key])
        return given

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            word = message.split(": ", 1)[1].split()[0].split("=")[0]
            message = f"unknown option {word}" + nearest(word, (f"--{key}" for key in self.fields))
        raise UserError(message)

    def format_help(self) -> str:
        """One entry an option: name, meaning, default."""
        described = {key: text for cls in self.options for key, text in docstrings(cls).items()}
        description = " ".join(inspect.getdoc(self.options[0]).split())  # type: ignore[union-attr]
        lines = [f"usage: {self.prog} {self.usage}", "", *textwrap.wrap(description, 100), ""]
        for key, field in self.fields.items():
            lines += _help_entry(key.upper() if POSITIONAL in field.marks else f"--{key}", described[key], field)
        return "\n".join(lines) + "\n"


def _help_entry(name: str, text: str, field: Field) -> list[str]:
    default = " ".join(map(str, field.default)) if isinstance(field.default, list) else field.default
    if "(default" not in text and default not in (None, "", False, MISSING):
        text += f" (default: {default!r})" if default == "\n" else f" (default: {default})"
    wrapped = textwrap.wrap(text, 110 - 32)
    return [f"  {name:<29} {wrapped[0]}", *(" " * 32 + line for line in wrapped[1:])]


def _read(typed: str | list[str], kind: Any) -> Any:
    """What was typed as a value of a type; as it stands where it is none, for the type's check to refuse."""
    if isinstance(typed, list):
        return [_read(word, get_args(kind)[0]) for word in typed]
    if fits(typed, kind) and not (typed == "null" and fits(None, kind)):
        return typed
    try:
        return read_yaml(typed)
    except UserError:
        return typed


def parse(options: type[Options], words: list[str], prog: str, usage: str) -> Options:
    """The options that a command line gives.

    Raises:
        UserError: an option is unknown or missing, or its value is wrong.
    """
    return options(**Parser(prog, usage, options).read(words))


def command_line(prog: str, options: Any) -> str:
    """The command that gives these options, as it is typed; without --insert, which says where its output goes."""
    words: list[str] = []
    for key, field in fields(type(options)).items():
        value = getattr(options, key)
        if key == "insert" or value == field.default:
            continue
        named = [] if POSITIONAL in field.marks else [f"--{key}"]
        words += named + ([] if value is True else [str(v) for v in (value if isinstance(value, list) else [value])])
    return shlex.join([*prog.split(), *words])
