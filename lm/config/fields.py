"""Fields of options dataclasses: their types, their bounds, and how `--help` and error messages describe them.

A field is annotated with its type and, by `Annotated`, with marks: a `Range` for a number, `FREE_TEXT`, `OUTPUT`,
`POSITIONAL` or `REPEATED` for a text. Its docstring is its line in `--help`.
"""

import ast
import difflib
import functools
import inspect
import itertools
import math
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, is_dataclass
from dataclasses import fields as dataclass_fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from lm.files import CONTROL, SURROGATE, UserError, shorten

FREE_TEXT = "free text"
"""Mark: any text, line ends included. Other texts are one printable line with at most 255 bytes between slashes."""
OUTPUT = "output"
"""Mark: a file to write, which is checked before any work is done."""
POSITIONAL = "positional"
"""Mark: typed without an option name."""
REPEATED = "repeated"
"""Mark: a list that gets one value each time the option is given."""
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


@dataclass(frozen=True)
class Range:
    """Bounds of a number. An error message says `text`, or by default the bound that the value breaks.

    The default of `most` refuses numbers beyond 2^31, which are typing errors and would fill the memory.
    """

    least: float = -math.inf
    above: float = -math.inf
    below: float = math.inf
    most: float = 2**31 - 1
    text: str = ""

    def expected(self, value: float) -> str:
        """What a value outside the bounds should have been, in words; empty for a value within them."""
        if isinstance(value, float) and not math.isfinite(value):  # a whole number may be too large for a float
            return "a finite number"
        if value < self.least:
            return self.text or f"at least {self.least:,}"
        if value <= self.above:
            return self.text or f"above {self.above:,}"
        if value >= self.below or value > self.most:
            return self.text or f"at most {self.most:,}"
        return ""


Count = Annotated[int, Range(least=1)]
Natural = Annotated[int, Range(least=0)]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(least=0)]
Share = Annotated[float, Range(least=0, most=1, text="between 0 and 1")]
Fraction = Annotated[float, Range(least=0, below=1, text="at least 0 and below 1")]
FreeText = Annotated[str, FREE_TEXT]
Output = Annotated[str, OUTPUT]


@dataclass(frozen=True)
class Field:
    """One option: its dataclass, its full name ("model.width"), type, marks and default value."""

    owner: type
    key: str
    kind: Any
    marks: tuple[Any, ...]
    default: Any

    @property
    def flag(self) -> str:
        """How the option is typed: `--model.width`, or `model.width` for a positional one."""
        return self.key if POSITIONAL in self.marks else f"--{self.key}"

    @property
    def text(self) -> str:
        """The docstring of the field in one line, with the values that it can have unless it names them all."""
        name = self.key.rpartition(".")[2]
        text = next(docs[name] for docs in map(_docstrings, self.owner.__mro__) if name in docs)
        values = [word for word in _words(self.kind) if word not in WORDS.values()]
        return text if set(values) <= set(re.findall(r"[\w/-]+", text)) else f"{text} [{', '.join(values)}]"

    def check(self, value: Any, prefix: str = "") -> None:
        """Check that a value is of the field's type and within its bounds.

        Raises:
            UserError: names the option (after `prefix`), what it must be, and what it is.
        """
        name = prefix + self.key
        several = get_origin(self.kind) is list and isinstance(value, list)
        kind = get_args(self.kind)[0] if several else self.kind
        for item in value if several else [value]:
            if not fits(item, kind):
                known = _words(kind)
                hint = nearest(item, known) if isinstance(item, str) else ""
                raise UserError(f"{name}: expected {' or '.join(known)}, not {shorten(item)}{hint}")
            if isinstance(item, str):
                self._check_text(item, name)
            elif isinstance(item, int | float) and not isinstance(item, bool):
                for bound in (mark for mark in self.marks if isinstance(mark, Range)):
                    if expected := bound.expected(item):
                        raise UserError(f"{name} must be {expected}, not {shorten(item)}")

    def _check_text(self, text: str, name: str) -> None:
        free = FREE_TEXT in self.marks
        if (SURROGATE if free else CONTROL).search(text):
            raise UserError(f"{name} has a character that no such text can have: {text[:80]!a}")
        if not free and any(len(part.encode()) > 255 for part in text.split("/")):
            raise UserError(f"{name}: {shorten(text)} is too long; no file or folder can have such a name")


def fields(options: type, prefix: str = "") -> dict[str, Field]:
    """The fields of a dataclass by their full names; those of a nested dataclass as `section.name`."""
    found: dict[str, Field] = {}
    kinds, annotations = get_type_hints(options), get_type_hints(options, include_extras=True)
    for field in dataclass_fields(options):
        key, kind = prefix + field.name, kinds[field.name]
        if is_dataclass(kind):
            found |= fields(kind, f"{key}.")  # type: ignore[arg-type]
        else:
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            found[key] = Field(options, key, kind, tuple(_marks(annotations[field.name])), default)
    return found


def _marks(annotation: Any) -> Iterator[Any]:
    yield from getattr(annotation, "__metadata__", ())
    for part in get_args(annotation):
        yield from _marks(part)


@functools.cache
def _docstrings(options: type) -> dict[str, str]:
    """The docstrings of the fields that a class itself defines."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(options))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        ast.unparse(line.target): " ".join(ast.literal_eval(after.value).split())
        for line, after in itertools.pairwise(definition.body)
        if isinstance(line, ast.AnnAssign) and isinstance(after, ast.Expr)
    }


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type. The types must be equal, but a whole number fits where a float is expected."""
    if get_origin(kind) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(fits(item, get_args(kind)[0]) for item in value)
    if get_args(kind):
        return any(fits(value, choice) for choice in get_args(kind))
    return type(value) in ((int, float) if kind is float else (kind,))


def _words(kind: Any) -> list[str]:
    """What a type accepts, in words: its values if it lists them, else its name."""
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    return list(dict.fromkeys(word for part in get_args(kind) for word in _words(part))) or [WORDS[kind]]


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message that suggests the most similar known word; empty if none is similar."""
    near = difflib.get_close_matches(word[:100], list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""
