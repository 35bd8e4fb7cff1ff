"""The mixers by name. Every one is made as `MIXERS[name](width, **options)`."""

from pkgutil import resolve_name

from lm.config import options
from lm.mixers.base import Mixer, State

__all__ = ["MIXERS", "Mixer", "State"]

MIXERS: dict[str, type[Mixer]] = {name: resolve_name(f"lm.mixers.{place}") for name, place in options.MIXERS.items()}
"""The class of each mixer that `lm.config.options.MIXERS` declares."""
