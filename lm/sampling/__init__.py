"""Text from a trained model: prefill, decoding, sampling filters, states, and the command `char-lm generate`."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`lm.sampling.generate`, imported at first use: `char-lm generate --help` need not load torch."""
    if name == "generate":
        from lm.sampling.text import generate

        return generate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
