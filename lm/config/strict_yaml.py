"""YAML for configurations: plain data only, without anchors, tags and deep nesting."""

import re
from typing import Any

import yaml

from lm.files import UserError, shorten

LARGEST = 2**20
"""Largest number of characters in a configuration."""


def read_yaml(text: str) -> Any:
    """Parse YAML into plain data.

    Raises:
        UserError: it is not YAML, has a key twice in a section, or has what no configuration needs and an attack could
            use: anchors (a few lines of them can stand for gigabytes), tags, very deep nesting.
    """
    if len(text) > LARGEST:
        raise UserError(f"{len(text):,} characters; such a file has at most {LARGEST:,}")
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_Yaml):
            line = f"line {event.start_mark.line + 1}"  # type: ignore[union-attr]
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if getattr(event, "anchor", None):
                raise UserError(f"{line}: anchors (&) and aliases (*) are not allowed; write the value out")
            if tag := getattr(event, "tag", None):
                raise UserError(f"{line}: tags ({shorten(tag)}) are not allowed; write a plain value")
            if depth > 8:
                raise UserError(f"{line}: nested too deeply")
        return yaml.load(text, _Yaml)
    except yaml.MarkedYAMLError as error:
        at = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{at}not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise UserError(f"not YAML: {error}") from None


class _Yaml(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads numbers as Python writes them (1e-3), dates as text, and every key once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            line = f"line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{line}: a key must be a word")
            if key.value in seen:
                raise UserError(f"{line}: {shorten(key.value)} is there twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag.rsplit(":", 1)[1] not in ("timestamp", "float", "merge", "value")]
    for first, forms in _Yaml.yaml_implicit_resolvers.items()
}


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*\.[\d_]*(e[-+]?\d+)?|\d[\d_]*e[-+]?\d+|\.\d[\d_]*(e[-+]?\d+)?|\.inf)$|\.nan$", re.I),
    list("-+0123456789."),
)


def write_yaml(values: dict[str, Any]) -> str:
    """Write YAML that `read_yaml` reads back as the same values in the same order."""
    return yaml.dump(values, Dumper=_Writer, sort_keys=False, allow_unicode=True)


class _Writer(yaml.SafeDumper):
    """Quotes texts that `_Yaml` would read as another type."""


_Writer.yaml_implicit_resolvers = _Yaml.yaml_implicit_resolvers
