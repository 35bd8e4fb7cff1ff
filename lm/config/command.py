"""Command lines from options dataclasses, with short help, and one-line errors that suggest the nearest right name."""

import argparse
import inspect
import shlex
import textwrap
from dataclasses import MISSING
from typing import Any, NoReturn, TypeVar, get_args, get_origin

from lm.config.fields import OUTPUT, POSITIONAL, REPEATED, Field, fields, fits, nearest
from lm.config.strict_yaml import read_yaml
from lm.files import UserError, check_output

Options = TypeVar("Options")


class Parser(argparse.ArgumentParser):
    """The parser of a command whose options are the fields of dataclasses.

    Args:
        prog: the command, as it is typed.
        usage: its arguments in short.
        options: the dataclasses; the docstring of the first describes the command.
    """

    def __init__(self, prog: str, usage: str, *options: type) -> None:
        super().__init__(prog=prog, usage=usage, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        self.options = options
        self.fields = {key: field for cls in options for key, field in fields(cls).items()}
        for field in self.fields.values():
            self.add_argument(field.flag, **_settings(field))

    def read(self, words: list[str]) -> dict[str, Any]:
        """The options that are given, by their full names, each of the right type and within its bounds.

        Raises:
            UserError: an option is unknown, or its value is wrong.
        """
        given = {}
        for key, typed in vars(self.parse_intermixed_args(words)).items():
            field = self.fields[key]
            given[key] = read_value(typed, field.kind)
            field.check(given[key], field.flag.removesuffix(key))
            if OUTPUT in field.marks and given[key] is not None:
                check_output(given[key])
        return given

    def error(self, message: str) -> NoReturn:
        """Raise a UserError; argparse would print the usage and exit."""
        if message.startswith("unrecognized arguments: "):
            word = message.split(": ", 1)[1].split()[0].split("=")[0]
            message = f"unknown option {word}" + nearest(word, (field.flag for field in self.fields.values()))
        raise UserError(message)

    def print_help(self, file: Any = None) -> None:
        """Print the help to stdout; argparse would ignore errors such as a full disk."""
        print(self.format_help(), end="")

    def format_help(self) -> str:
        """One entry an option: name, meaning, default."""
        description = textwrap.wrap(" ".join((inspect.getdoc(self.options[0]) or "").split()), 100)
        entries = [_help_entry(field) for field in self.fields.values()]
        return "\n".join([f"usage: {self.prog} {self.usage}", "", *description, "", *entries, ""])


def _settings(field: Field) -> dict[str, Any]:
    """How argparse should read an option."""
    optional = POSITIONAL in field.marks and field.default is not MISSING
    if field.kind is bool and "." not in field.key:
        return {"action": "store_const", "const": "true"}
    if REPEATED in field.marks:
        return {"action": "append"}
    if get_origin(field.kind) is list:
        return {"nargs": "*" if optional else "+"}
    return {"nargs": "?"} if optional else {}


def _help_entry(field: Field) -> str:
    text = field.text
    default = " ".join(map(str, field.default)) if isinstance(field.default, list) else field.default
    if "(default" not in text and default not in (None, "", False, MISSING):
        text += f" (default: {default!r})" if default == "\n" else f" (default: {default})"
    name = field.key.upper() if POSITIONAL in field.marks else field.flag
    return textwrap.fill(text, 110, initial_indent=f"  {name:<29} ", subsequent_indent=" " * 32)


def read_value(typed: str | list[str], kind: Any) -> Any:
    """The value that was typed; the text itself where it is no value of the type, for `Field.check` to refuse."""
    if isinstance(typed, list):
        return [read_value(word, get_args(kind)[0]) for word in typed]
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
    words = prog.split()
    for key, field in fields(type(options)).items():
        value = getattr(options, key)
        if key == "insert" or value == field.default:
            continue
        words += [] if POSITIONAL in field.marks else [field.flag]
        words += [] if value is True else map(str, value if isinstance(value, list) else [value])
    return shlex.join(words)
