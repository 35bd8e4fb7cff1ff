"""Operations that autograd, autocast and torch.compile see as one opaque call.

`torch.library.custom_op` does the same, but imports torch's compiler at the first call, which takes a second at the
start of every program, and each call costs twice as much.
"""

from collections.abc import Callable
from typing import Any

import torch

OPERATIONS: dict[str, "Operation"] = {}
"""All operations by their names, such as "lm::linear_scan"."""


class Operation:
    """A registered function; see `custom_op`."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function = name, function
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(name, schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(name, "default", function)
        namespace, _, short = name.partition("::")
        self.operation = getattr(getattr(torch.ops, namespace), short).default
        OPERATIONS[name] = self

    def __call__(self, *arguments: Any) -> Any:
        return self.operation(*arguments)

    def register_fake(self, function: Callable[..., Any]) -> None:
        """Take this function, which only makes results of the right shapes, where there is nothing to compute."""
        torch.library.register_fake(self.name, function)

    def register_autograd(self, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
        """Take these functions for backward; see `torch.library.register_autograd`."""
        torch.library.register_autograd(self.name, backward, setup_context=setup_context)

    def forbid_autograd(self) -> None:
        """Let backward raise a RuntimeError, as there are no second derivatives."""

        def backward(ctx: Any, *grads: Any) -> Any:
            raise RuntimeError(f"{self.name} has no derivative")

        torch.library.register_autograd(self.name, backward)


def custom_op(name: str) -> Callable[[Callable[..., Any]], Operation]:
    """Register a function as an operation of torch. It must not change its arguments, nor return one of them.

    Args:
        name: "namespace::name".
    """
    return lambda function: Operation(name, function)
