"""A product that is cut in two right after it becomes two products with half of the weights each: no copy then.

The value and the gate of a feed-forward (GEGLU) are halves of one linear layer; cutting its result along the last axis
copies the largest tensor of the network. So do the turning and the resting half of rotary queries and keys.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .nodes import constant, constant_value, matmul


def split_products(model: Any) -> int:
    """Rewrite ``split(x @ weight + bias, 2)`` along the last axis in an ``openvino.Model``, in place.

    Returns:
        How many were rewritten.
    """
    count = 0
    for node in model.get_ordered_ops():
        parts = _parts(node)
        if parts is None:
            continue
        for half, output in zip(_halves(*parts), node.outputs(), strict=True):
            output.replace(half.output(0))
        count += 1
    return count


def _parts(node: Any) -> tuple[Any, NDArray[np.float32], NDArray[np.float32] | None] | None:
    """(product, weight, bias or None) that a cut in two halves follows; None where the pattern is another."""
    if node.get_type_name() not in ("Split", "VariadicSplit") or len(node.outputs()) != 2:
        return None
    first, second = (output.get_partial_shape() for output in node.outputs())
    axis = node.input_value(1).get_node()
    if axis.get_type_name() != "Constant" or not first.is_static or first != second:
        return None
    if int(axis.data) not in (-1, len(first) - 1):
        return None
    product, bias = node.input_value(0).get_node(), None
    if product.get_type_name() == "Add" and _readers(product) == 1:
        operands = [product.input_value(index).get_node() for index in (0, 1)]
        product, other = sorted(operands, key=lambda operand: operand.get_type_name() == "Constant")
        bias = constant_value(other)
        if bias is None or bias.size != 2 * first[len(first) - 1].get_length():
            return None
    if product.get_type_name() != "MatMul" or _readers(product) != 1 or product.get_attributes()["transpose_a"]:
        return None
    weight = constant_value(product.input_value(1).get_node())
    return (product, weight, bias) if weight is not None and weight.ndim == 2 else None


def _readers(node: Any) -> int:
    return len(node.output(0).get_target_inputs())


def _halves(product: Any, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> list[Any]:
    from openvino import opset13 as op

    transposed = product.get_attributes()["transpose_b"]
    halves = [
        matmul(product.input_value(0), constant(part), transpose_b=transposed)
        for part in np.split(weight, 2, axis=0 if transposed else 1)
    ]
    if bias is None:
        return halves
    return [op.add(half, constant(part)) for half, part in zip(halves, np.split(bias.ravel(), 2), strict=True)]
