"""Nodes put into a graph that an engine is built from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Sizes = Sequence[int | ir.SymbolicDim | None]


class NewNodes:
    """New nodes before another one, named after it."""

    def __init__(self, graph: ir.Graph, before: ir.Node) -> None:
        self.graph, self.before = graph, before

    def add(self, op: str, inputs: Sequence[ir.Value], sizes: Sizes, **attributes: Any) -> ir.Value:
        """The output of a new node, of the type of its first input, or the one that it casts to."""
        return self._node(op, inputs, [sizes], attributes)[0]

    def split(self, value: ir.Value, parts: Sequence[int]) -> list[ir.Value]:
        """Parts along the last axis."""
        axis = len(value.shape) - 1
        sizes = [[*value.shape[:-1], part] for part in parts]
        return self._node("Split", [value, self.integers(parts)], sizes, {"axis": axis})

    def _node(
        self, op: str, inputs: Sequence[ir.Value], sizes: Sequence[Sizes], attributes: dict[str, Any]
    ) -> list[ir.Value]:
        count = self.before.meta["new nodes"] = self.before.meta.get("new nodes", 0) + 1
        name = f"{self.before.name}_before_{count}"
        dtype = attributes.get("to", inputs[0].dtype)
        outputs = [
            ir.val(f"{name}_{index}" if index else name, dtype, ir.Shape(one)) for index, one in enumerate(sizes)
        ]
        self.before.prepend(ir.node(op, inputs, attributes, outputs=outputs, name=f"{op}_{name}"))
        return outputs

    def integers(self, values: Sequence[int]) -> ir.Value:
        """A constant, int64 [length]."""
        return self._constant("integers_" + "_".join(map(str, values)), np.array(values, np.int64))

    def integer(self, value: int) -> ir.Value:
        """A constant, an int64 number."""
        return self._constant(f"integer_{value}", np.array(value, np.int64))

    def real(self, value: float) -> ir.Value:
        """A constant, a float32 number."""
        return self._constant(f"real_{value!r}", np.array(value, np.float32))

    def _constant(self, name: str, values: NDArray[Any]) -> ir.Value:
        if name not in self.graph.initializers:
            tensor = ir.tensor(values, name=name)
            self.graph.register_initializer(ir.val(name, tensor.dtype, tensor.shape, const_value=tensor))
        return self.graph.initializers[name]

    def reshape(self, value: ir.Value, sizes: Sizes) -> ir.Value:
        """At most one of the sizes is open."""
        wanted = [size if isinstance(size, int) else -1 for size in sizes]
        return self.add("Reshape", [value, self.integers(wanted)], [None if size == -1 else size for size in sizes])

    def transpose(self, value: ir.Value, order: Sequence[int]) -> ir.Value:
        return self.add("Transpose", [value], [value.shape[axis] for axis in order], perm=list(order))

    def first(self, value: ir.Value, axis: int) -> ir.Value:
        """The first slice along an axis, which stays."""
        sizes = [*value.shape]
        sizes[axis] = 1
        return self.add("Slice", [value, *(self.integers([part]) for part in (0, 1, axis))], sizes)

    def concat(self, values: Sequence[ir.Value], axis: int) -> ir.Value:
        sizes = [*values[0].shape]
        sizes[axis] = sum(value.shape[axis] for value in values)
        return self.add("Concat", values, sizes, axis=axis)
