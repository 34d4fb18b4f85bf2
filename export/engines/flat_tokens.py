"""Token-wise operations on [tokens, channels]: a product then takes its bias and its residual sum with it.

TensorRT for RTX makes one kernel of product, bias and residual sum where all three are matrices; of tensors of a higher
rank it makes a product and one more kernel for the sums (read from plans for compute capability 8.9). Shapes change, no
number does.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_ELEMENT_WISE = frozenset({"Add", "Mul", "Gelu", "Cast"})


def flatten_tokens(graph: ir.Graph) -> int:
    """Rewrite, in place, products with a weight and the sums and normalisations that follow them.

    Args:
        graph: tokens are [..., channels], images [rows, channels, height, width]. A tensor of which more than one size
            is open stays as it is.

    Returns:
        How many products were rewritten.
    """
    rewriting = _Flattening(graph)
    rewriting.run()
    return rewriting.products


class _Flattening:
    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.matrix: dict[ir.Value, ir.Value] = {}
        """Tokens [..., channels] -> the same numbers as [tokens, channels]."""
        self.products = 0

    def run(self) -> None:
        for node in list(self.graph):
            if node.op_type == "Reshape":
                self._follow(node)
            elif self._is_token_wise(node):
                self._flatten(node)

    def _follow(self, node: ir.Node) -> None:
        """A Reshape of tokens that leaves their channels alone."""
        before, after = node.inputs[0], node.outputs[0]
        if before in self.matrix and _is_settled(after) and _channels(before) == _channels(after):
            self.matrix[after] = self.matrix[before]

    def _is_token_wise(self, node: ir.Node) -> bool:
        computed = [value for value in node.inputs if value is not None and not value.is_initializer()]
        out = node.outputs[0]
        if not all(_is_settled(value) and len(value.shape) > 2 for value in (*computed, *node.outputs)):
            return False
        if out.is_graph_output():
            return False
        if node.op_type == "MatMul":
            return len(computed) == 1 and node.inputs[1].is_initializer() and len(node.inputs[1].shape) == 2
        if node.op_type not in (*_ELEMENT_WISE, "LayerNormalization", "Split"):
            return False
        vectors = [value for value in node.inputs if value is not None and value.is_initializer()]
        if node.op_type == "Split":
            return node.attributes.get_int("axis", 0) in (-1, len(out.shape) - 1) and computed[0] in self.matrix
        return (
            all(len(value.shape) == 1 for value in vectors)
            and len({_channels(value) for value in computed}) == 1
            and any(value in self.matrix for value in computed)
        )

    def _flatten(self, node: ir.Node) -> None:
        self.products += node.op_type == "MatMul"
        for index, value in enumerate(node.inputs):
            if value is not None and not value.is_initializer() and not (node.op_type == "Split" and index):
                node.replace_input_with(index, self._as_matrix(value, node))
        if "axis" in node.attributes:
            node.attributes["axis"] = ir.AttrInt64("axis", -1)
        for out in node.outputs:
            shape, channels = out.shape, _channels(out)
            restored = ir.val(f"{out.name}_tokens", out.dtype, shape)
            out.replace_all_uses_with(restored)
            out.shape = ir.Shape([None, channels])
            node.append(self._reshape(out, restored))
            self.matrix[restored] = out

    def _as_matrix(self, value: ir.Value, reader: ir.Node) -> ir.Value:
        if value not in self.matrix:
            flat = ir.val(f"{value.name}_matrix", value.dtype, ir.Shape([None, _channels(value)]))
            reader.prepend(self._reshape(value, flat))
            self.matrix[value] = flat
        return self.matrix[value]

    def _reshape(self, value: ir.Value, out: ir.Value) -> ir.Node:
        sizes = [size if isinstance(size, int) else -1 for size in out.shape]
        if len(sizes) == 2:
            sizes[0] = -1
        name = f"{out.name}_sizes"
        shape = ir.val(name, const_value=ir.tensor(np.array(sizes, np.int64), name=name))
        self.graph.register_initializer(shape)
        return ir.node("Reshape", [value, shape], outputs=[out], name=f"Reshape_{out.name}")


def _is_settled(value: ir.Value) -> bool:
    """At most one size is open."""
    return value.shape is not None and sum(not isinstance(size, int) for size in value.shape) <= 1


def _channels(value: ir.Value) -> int | None:
    size = value.shape[-1]
    return size if isinstance(size, int) else None
