"""The choice between native, Triton's and portable kernels, and what the native ones have in common."""

import functools
import importlib
import os
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from lm.native.build import BuildError, warn_once

BACKENDS = ("auto", "portable", "native", "triton")
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The element types of native kernels, with their numbers in kernel.h."""
Made = TypeVar("Made")
SMALL = 1 << 17
"""Elements that take one thread longer than it takes to wake another."""


def choose(x: Tensor, portable: ModuleType, native: ModuleType, triton: str | None = None) -> ModuleType:
    """Choose the module whose kernels compute with x: `native` on a CPU, `triton` on an NVIDIA GPU, else `portable`.

    The environment variable LM_BACKEND overrides this: `portable`; `native`, the kernels of the tensor's device, with
    an error where `auto` would fall back; or `triton`, on a CPU too (in Triton's interpreter: TRITON_INTERPRET=1).

    Args:
        native: has the `lm.native.build.Library` of its kernels as `library`.
        triton: the name of a module that imports Triton; None if there are no such kernels.

    Raises:
        ValueError: LM_BACKEND has another value.
        BuildError, ImportError: LM_BACKEND asks for kernels that are not available here.
    """
    backend = os.environ.get("LM_BACKEND", "auto")
    if backend not in BACKENDS:
        raise ValueError(f"LM_BACKEND is {backend!r}; it can be {', '.join(BACKENDS)}")
    try:
        if triton and (backend == "triton" or (backend != "portable" and x.device.type == "cuda")):
            return importlib.import_module(triton)
        if backend in ("auto", "native") and x.device.type == "cpu" and x.dtype in TYPES:
            native.library()
            return native
    except (BuildError, ImportError) as error:
        if backend != "auto":
            raise
        warn_once(str(error))
    return portable


def thread_count(elements: int) -> int:
    """Threads for a tensor of so many elements: one if it is small, at most torch's number."""
    return min(torch.get_num_threads(), 1 + elements // SMALL)


def prepared(make: Callable[..., Made]) -> Callable[..., Made]:
    """Keep what a function makes for the arguments that it was last called with, for each thread its own.

    It makes the arguments of a kernel: sizes and types, which rarely change, once; callers then set the addresses.
    Making all of them takes Python as long as a small kernel runs.
    """

    @functools.lru_cache(maxsize=256)
    def kept(thread: int, *arguments: Any) -> Made:
        return make(*arguments)

    def get(*arguments: Any) -> Made:
        return kept(threading.get_ident(), *arguments)

    return get
