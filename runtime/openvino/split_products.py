"""A product that is cut in two right after it becomes two products with half of the weights each: no copy then.

The value and the gate of a feed-forward (GEGLU) are halves of one linear layer; cutting its result along the last axis
copies the largest tensor of the network. So do the turning and the resting half of rotary queries and keys, and the
even and odd channels of the turning half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .nodes import constant, constant_value, matmul, put_in_place, reshape

Values = NDArray[np.float32]


def split_products(model: Any) -> int:
    """Rewrite ``split(x @ weight + bias, 2)`` along the last axis, and the same into even and odd channels, in an
    ``openvino.Model`` of fixed sizes, in place.

    Returns:
        How many were rewritten.
    """
    count = 0
    for node in model.get_ordered_ops():
        halves, pairs = _cut_in_halves(node), _cut_in_pairs(node)
        if halves is not None:
            gated = _gated_product(node)
            if gated is not None and halves.bias is not None:
                put_in_place(gated, _geglu(halves, gated))
            else:
                for part, output in enumerate(node.outputs()):
                    output.replace(halves.product_of(part).output(0))
        elif pairs is not None:
            for reader, part in _picked(node):
                put_in_place(reader, reshape(pairs.product_of(part), *reader.get_output_shape(0)))
        count += halves is not None or pairs is not None
    return count


@dataclass(frozen=True)
class _Cut:
    """A product and how its result is cut."""

    product: Any
    weight: Values
    bias: Values | None
    interleaved: bool
    """Into even and odd channels, instead of first and second half."""

    @property
    def _transposed(self) -> bool:
        return bool(self.product.get_attributes()["transpose_b"])

    def _part(self, values: Values, part: int, axis: int) -> Values:
        if self.interleaved:
            return np.take(values, np.arange(part, values.shape[axis], 2), axis)
        return np.split(values, 2, axis)[part]

    def without_bias(self, part: int) -> Any:
        weights = self._part(self.weight, part, 0 if self._transposed else 1)
        return matmul(self.product.input_value(0), constant(weights), transpose_b=self._transposed)

    def bias_of(self, part: int) -> Any:
        assert self.bias is not None
        return constant(self._part(self.bias.ravel(), part, 0))

    def product_of(self, part: int) -> Any:
        from openvino import opset13 as op

        product = self.without_bias(part)
        return product if self.bias is None else op.add(product, self.bias_of(part))


def _cut_in_halves(node: Any) -> _Cut | None:
    """A split of a product's last axis in two; None for any other node."""
    if node.get_type_name() not in ("Split", "VariadicSplit") or len(node.outputs()) != 2:
        return None
    first, second = (output.get_partial_shape() for output in node.outputs())
    axis = constant_value(node.input_value(1).get_node())
    if axis is None or not first.is_static or first != second or int(axis) not in (-1, len(first) - 1):
        return None
    return _product_behind(node.input_value(0).get_node(), 2 * list(first.get_shape())[-1], interleaved=False)


def _cut_in_pairs(node: Any) -> _Cut | None:
    """A reshape of a product from [..., channels] to [..., channels / 2, 2] of which only single channels of the pairs
    are read; None for any other node.
    """
    if node.get_type_name() != "Reshape" or not node.get_output_partial_shape(0).is_static:
        return None
    product, shape = node.input_value(0).get_node(), list(node.get_output_shape(0))
    before = product.get_output_partial_shape(0)
    if len(shape) < 3 or shape[-1] != 2 or not before.is_static:
        return None
    channels = 2 * shape[-2]
    if list(before.get_shape()) != [*shape[:-2], channels]:
        return None
    if len(_picked(node)) != len(_readers(node)):
        return None
    return _product_behind(product, channels, interleaved=True)


def _picked(pairs: Any) -> list[tuple[Any, int]]:
    """The slices that pick one of the two on the last axis, and which one each picks."""
    found = []
    for node in _readers(pairs):
        if node.get_type_name() != "Slice" or len(node.inputs()) != 5:
            continue
        bounds = [constant_value(node.input_value(position).get_node()) for position in range(1, 5)]
        values = [int(bound.item()) for bound in bounds if bound is not None and bound.size == 1]
        last = len(node.get_output_partial_shape(0)) - 1
        for part in (0, 1):
            if values in ([part, part + 1, 1, -1], [part, part + 1, 1, last]):
                found.append((node, part))
    return found


def _product_behind(node: Any, channels: int, *, interleaved: bool) -> _Cut | None:
    """The product, with or without a bias, that a node is; None: it is no product, or something else reads it too."""
    bias = None
    if node.get_type_name() == "Add" and len(_readers(node)) == 1:
        operands = [node.input_value(index).get_node() for index in (0, 1)]
        node, other = sorted(operands, key=lambda operand: operand.get_type_name() == "Constant")
        bias = constant_value(other)
        if bias is None or bias.size != channels:
            return None
    if node.get_type_name() != "MatMul" or node.get_element_type().get_type_name() != "f32":
        return None
    if len(_readers(node)) != 1 or node.get_attributes()["transpose_a"]:
        return None
    weight = constant_value(node.input_value(1).get_node())
    return _Cut(node, weight, bias, interleaved) if weight is not None and weight.ndim == 2 else None


def _readers(node: Any) -> list[Any]:
    return [target.get_node() for target in node.output(0).get_target_inputs()]


def _gated_product(split: Any) -> Any:
    """The node of ``value * gelu(gate)`` behind a cut into [value, gate]; None: something else reads the halves."""
    value, gate = ([target.get_node() for target in output.get_target_inputs()] for output in split.outputs())
    if len(value) != 1 or len(gate) != 1 or gate[0].get_type_name() != "Gelu" or len(_readers(gate[0])) != 1:
        return None
    (reader,) = _readers(gate[0])
    same = reader.get_friendly_name() == value[0].get_friendly_name()
    return reader if same and reader.get_type_name() == "Multiply" else None


def _geglu(cut: _Cut, gated: Any) -> Any:
    """``value * gelu(gate)``, the gate's bias behind a change of shape: the plug-in would otherwise put the activation
    into the gate's product, and then takes a slower product for it.
    """
    from openvino import opset13 as op

    (activation,) = (
        node for node in (gated.input_value(index).get_node() for index in (0, 1)) if node.get_type_name() == "Gelu"
    )
    value, gate = cut.product_of(0), cut.without_bias(1)
    shape = list(value.get_output_shape(0))
    value, gate = (reshape(half, -1, shape[-1]) for half in (value, gate))
    mode = activation.get_attributes()["approximation_mode"].lower()
    return reshape(op.multiply(value, op.gelu(op.add(gate, cut.bias_of(1)), mode)), *shape)
