"""Character-level language models with minGRU and minLSTM ("Were RNNs All We Needed?", arXiv 2410.01201)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm.runs.load import load

__all__ = ["load"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """`lm.load`, without making every import of a submodule load torch."""
    if name == "load":
        from lm.runs.load import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
