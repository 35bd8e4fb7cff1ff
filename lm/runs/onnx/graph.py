"""An ONNX graph under construction: values whose operators add nodes, and recurrences over time.

`Graph.fold` is its body itself in a step, and ONNX's Scan over the body in a sequence. Scan computes in the order of
`step`: its rounding is that of the recurrence, at any length, and its memory that of one state.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from onnx import TensorProto, helper
from torch import Tensor

END = 2**63 - 1
"""The end of an open slice."""


@dataclass(frozen=True)
class Value:
    """A tensor of a graph. Its operators and methods add nodes; the other operand may be a torch tensor or a number."""

    graph: "Graph"
    name: str

    def __add__(self, other: "Operand") -> "Value":
        return self.graph.add("Add", self, other)

    def __sub__(self, other: "Operand") -> "Value":
        return self.graph.add("Sub", self, other)

    def __mul__(self, other: "Operand") -> "Value":
        return self.graph.add("Mul", self, other)

    def __matmul__(self, other: "Operand") -> "Value":
        return self.graph.add("MatMul", self, other)

    def __neg__(self) -> "Value":
        return self.graph.add("Neg", self)

    def exp(self) -> "Value":
        return self.graph.add("Exp", self)

    def reciprocal(self) -> "Value":
        return self.graph.add("Reciprocal", self)

    def sigmoid(self) -> "Value":
        """To the last digit: onnxruntime's Sigmoid is a fit, off by 1e-4 of its value at 1e-5, where slow gates are."""
        return ((-self).exp() + 1.0).reciprocal()

    def transpose(self, *axes: int) -> "Value":
        return self.graph.add("Transpose", self, perm=list(axes))

    def softplus(self) -> "Value":
        return self.graph.add("Softplus", self)

    def silu(self) -> "Value":
        return self * self.sigmoid()

    def unsqueeze(self, *axes: int) -> "Value":
        return self.graph.add("Unsqueeze", self, list(axes))

    def squeeze(self, axis: int) -> "Value":
        return self.graph.add("Squeeze", self, [axis])

    def last(self, count: int) -> "Value":
        """The last `count` along axis 1."""
        return self.graph.add("Slice", self, [-count], [END], [1])

    def split(self, parts: int | list[int], axis: int = -1) -> "Values":
        """So many equal parts, or parts of these sizes."""
        if isinstance(parts, int):
            return self.graph.add_node("Split", [self], parts, axis=axis, num_outputs=parts)
        return self.graph.add_node("Split", [self, parts], len(parts), axis=axis)


Values = list[Value]
Operand = Value | Tensor | float | list[int] | str
"""What a node can read: a value, a constant, or "" in the place of an input that is left out."""
Body = Callable[[Values, Values], tuple[Values, Values]]
"""One step of a recurrence: (states, inputs) -> (states, outputs), without a time axis."""


@dataclass
class Graph:
    """The nodes of a graph, or of the body of a Scan in it."""

    sequence: bool
    """whether tensors have a time axis: (B, T, D) rather than (B, D)"""
    parameters: dict[int, str]
    """names of the model's parameters by their addresses"""
    nodes: list[Any] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    """initializers by name; shared with the bodies, as the counter is, which numbers all other names"""
    counter: Iterator[int] = field(default_factory=itertools.count)

    def add(self, operation: str, *inputs: Operand, **attributes: Any) -> Value:
        """A node with one output."""
        return self.add_node(operation, inputs, 1, **attributes)[0]

    def add_node(self, operation: str, inputs: Iterable[Operand], outputs: int, **attributes: Any) -> Values:
        """A node with several outputs."""
        made = self.new_values(outputs)
        names = [x.name if isinstance(x, Value) else self.constant(x) for x in inputs]
        self.nodes.append(helper.make_node(operation, names, [value.name for value in made], **attributes))
        return made

    def new_values(self, count: int) -> Values:
        """Values with new names."""
        return [Value(self, f"v{next(self.counter)}") for _ in range(count)]

    def constant(self, x: Tensor | float | list[int] | str) -> str:
        """The name of an initializer: that of a parameter where x is a view of one. A name is its own."""
        if isinstance(x, str):
            return x
        x = x.detach() if isinstance(x, Tensor) else torch.tensor(x)
        for name, known in self.weights.items():
            if (known.data_ptr(), known.shape, known.stride()) == (x.data_ptr(), x.shape, x.stride()):
                return name
        name = self.parameters.get(x.data_ptr(), f"constant.{next(self.counter)}")
        name = name if name not in self.weights else f"{name}.{next(self.counter)}"
        self.weights[name] = x
        return name

    def output(self, x: Value, name: str) -> None:
        """Give a value the name of an output."""
        self.nodes.append(helper.make_node("Identity", [x.name], [name]))

    def fold(self, body: Body, states: Values, inputs: Values, rank: int = 2) -> tuple[Values, Values]:
        """Apply a body to (B, ...), or in a sequence to (B, T, ...) step by step. Returns the last states, and outputs.

        Args:
            states: float32, (B, ...), with `rank` axes.
            inputs: float32, (B, D), or in a sequence (B, T, D), as the outputs are; D may differ.
        """
        if not self.sequence:
            return body(states, inputs)
        inner = Graph(False, self.parameters, weights=self.weights, counter=self.counter)
        ins = inner.new_values(len(states) + len(inputs))
        last, outputs = body(ins[: len(states)], ins[len(states) :])
        outs = [*last, *(inner.add("Identity", y) for y in outputs)]  # a state may be an output as well
        axes = [[None] * (rank if i < len(states) else 2) for i in range(max(len(ins), len(outs)))]

        def typed(values: Values) -> list[Any]:
            return [helper.make_tensor_value_info(v.name, TensorProto.FLOAT, axes[i]) for i, v in enumerate(values)]

        results = self.add_node(
            "Scan",
            [*states, *inputs],
            len(outs),
            body=helper.make_graph(inner.nodes, "step", typed(ins), typed(outs)),
            num_scan_inputs=len(inputs),
            scan_input_axes=[1] * len(inputs),
            scan_output_axes=[1] * len(outputs),
        )
        return results[: len(last)], results[len(last) :]

    def with_time(self, x: Value) -> Value:
        """x (B, T, D), T = 1 in a step."""
        return x if self.sequence else x.unsqueeze(1)

    def without_time(self, x: Value) -> Value:
        """The inverse of `with_time`."""
        return x if self.sequence else x.squeeze(1)
