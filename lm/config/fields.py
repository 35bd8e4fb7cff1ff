"""What the fields of an options dataclass accept: types, bounds, and the words that `--help` and errors use.

A field is annotated with its type and, by `Annotated`, with marks: a `Range` for a number, `FREE_TEXT`, `OUTPUT`,
`POSITIONAL` or `REPEATED` for a word. Its docstring is its line in `--help`.
"""

import ast
import difflib
import inspect
import itertools
import math
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, is_dataclass
from dataclasses import fields as dataclass_fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from lm.files import CONTROL, SURROGATE, UserError, shorten

FREE_TEXT = "free text"
"""Mark: any text, line ends included; other texts are one printable line, and parts of a path hold 255 bytes."""
OUTPUT = "output"
"""Mark: a file to write, which is checked before any work is done for it."""
POSITIONAL = "positional"
"""Mark: typed without an option name."""
REPEATED = "repeated"
"""Mark: a list that collects one value each time the option is given."""
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


@dataclass(frozen=True)
class Range:
    """Bounds of a number. `text` says them all in words, else the one that a value breaks is said.

    Without `most`, numbers beyond 2^31 are refused too: they are slips of the finger, and would fill the memory.
    """

    least: float = -math.inf
    above: float = -math.inf
    below: float = math.inf
    most: float = 2**31 - 1
    text: str = ""

    def expected(self, value: float) -> str:
        """What a value should have been, in words; empty for one within the bounds."""
        if not math.isfinite(value):
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
    """One option: its full name ("model.width"), type, marks and default value."""

    key: str
    kind: Any
    marks: tuple[Any, ...]
    default: Any

    def check(self, value: Any, prefix: str = "") -> None:
        """Refuse a value of another type or outside the bounds.

        Raises:
            UserError: names the option (after `prefix`), what it must be, and what it is.
        """
        several = get_origin(self.kind) is list and isinstance(value, list)
        kind = get_args(self.kind)[0] if several else self.kind
        for item in value if several else [value]:
            self._check_type(item, kind, prefix + self.key)
        for item in value if isinstance(value, list) else [value]:
            self._check_bounds(item, prefix + self.key)

    def _check_type(self, value: Any, kind: Any, name: str) -> None:
        if not fits(value, kind):
            known = [str(choice) for choice in choices(kind)]
            expected = " or ".join(known or dict.fromkeys(_words(kind)))
            hint = nearest(value, known) if isinstance(value, str) else ""
            raise UserError(f"{name}: expected {expected}, not {shorten(value)}{hint}")

    def _check_bounds(self, value: Any, name: str) -> None:
        if isinstance(value, str):
            self._check_text(value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            for bound in (mark for mark in self.marks if isinstance(mark, Range)):
                if expected := bound.expected(value):
                    raise UserError(f"{name} must be {expected}, not {shorten(value)}")

    def _check_text(self, text: str, name: str) -> None:
        free = FREE_TEXT in self.marks
        if (SURROGATE if free else CONTROL).search(text):
            raise UserError(f"{name} has a character that no such text can have: {text[:80]!a}")
        if not free and any(len(part.encode()) > 255 for part in text.split("/")):
            raise UserError(f"{name}: {shorten(text)} is too long; no file or folder can have such a name")


def fields(options: type, prefix: str = "") -> dict[str, Field]:
    """The fields of a dataclass by their full names; those of a section as `section.name`."""
    return {field.key: field for field in _fields(options, prefix)}


def _fields(options: type, prefix: str) -> Iterator[Field]:
    kinds, marked = get_type_hints(options), get_type_hints(options, include_extras=True)
    for field in dataclass_fields(options):
        kind = kinds[field.name]
        if is_dataclass(kind):
            yield from _fields(kind, f"{prefix}{field.name}.")  # type: ignore[arg-type]
            continue
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        yield Field(prefix + field.name, kind, tuple(_marks(marked[field.name])), default)


def _marks(annotation: Any) -> Iterator[Any]:
    yield from getattr(annotation, "__metadata__", ())
    for part in get_args(annotation)[: 1 if hasattr(annotation, "__metadata__") else None]:
        yield from _marks(part)


def docstrings(options: type, prefix: str = "") -> dict[str, str]:
    """The docstrings of a dataclass's fields, sections included, by their full names."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(options))).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for base in options.__bases__:
        if is_dataclass(base):
            found |= docstrings(base, prefix)
    for line, after in itertools.pairwise([*definition.body, ast.Pass()]):
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        kind = get_type_hints(options)[line.target.id]
        if is_dataclass(kind):
            found |= docstrings(kind, f"{prefix}{line.target.id}.")  # type: ignore[arg-type]
        elif isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[prefix + line.target.id] = " ".join(str(after.value.value).split())
    return found


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type: exactly, but for a whole number where a float is expected."""
    if get_origin(kind) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(fits(item, get_args(kind)[0]) for item in value)
    if get_args(kind):
        return any(fits(value, choice) for choice in get_args(kind))
    return type(value) in ((int, float) if kind is float else (kind,))


def choices(kind: Any) -> list[Any]:
    """The values that a type enumerates; none where it does not."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return list(dict.fromkeys(choice for part in get_args(kind) for choice in choices(part)))


def _words(kind: Any) -> list[str]:
    return [word for part in get_args(kind) for word in _words(part)] if get_args(kind) else [WORDS[kind]]


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message: which known word may have been meant; empty where none is close."""
    near = difflib.get_close_matches(word[:100], list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""
