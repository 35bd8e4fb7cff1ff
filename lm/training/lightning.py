"""Lightning, imported without torch's compiler, which takes a second to import and is used only with model.compile.

Lightning takes two names from the compiler, a class for isinstance and a decorator. It gets substitutes that do the
same once the compiler is imported; before that, no module can be compiled and no function traced.
"""

import functools
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"


def import_lightning() -> None:
    """Import `lightning.pytorch`. Modules that import it afterwards get it as usual."""
    if COMPILER in sys.modules:
        import_module("lightning.pytorch")
        return
    substitute = sys.modules[COMPILER] = _substitute()
    try:
        import_module("lightning.pytorch")
    finally:
        if sys.modules.get(COMPILER) is substitute:
            del sys.modules[COMPILER]


def _substitute() -> ModuleType:
    """A module with the two names; any other name imports the compiler."""

    def __getattr__(name: str) -> Any:
        if name.startswith("__"):  # `import` asks for __path__
            raise AttributeError(name)
        sys.modules.pop(COMPILER, None)
        return getattr(import_module(COMPILER), name)

    module = ModuleType(COMPILER)
    vars(module).update(OptimizedModule=OptimizedModule, disable=disable, __getattr__=__getattr__)
    return module


def _compiler() -> Any:
    """The compiler, or None if nothing has imported it."""
    module = sys.modules.get(COMPILER)
    return module if hasattr(module, "__path__") else None


class _Compiled(type):
    """The type of `OptimizedModule`."""

    def __instancecheck__(cls, value: Any) -> bool:
        compiler = _compiler()
        return compiler is not None and isinstance(value, compiler.OptimizedModule)


class OptimizedModule(metaclass=_Compiled):
    """Stands for `torch._dynamo.OptimizedModule` in isinstance."""


def disable(function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[..., Any]:
    """Stands for `torch._dynamo.disable` as a decorator: the compiler does not trace the function."""
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not disabled and (compiler := _compiler()) is not None:
            disabled.append(compiler.disable(function, *arguments, **options))
        return (disabled[0] if disabled else function)(*args, **kwargs)

    return call
