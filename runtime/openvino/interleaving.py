"""Interleaving of two tensors, [..., n] and [..., n] -> [..., n, 2], as a sum: the plug-in's own joining along the last
axis copies value by value, and takes four times as long.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .nodes import constant, put_in_place


def use_sums_for_interleaving(model: Any) -> int:
    """Rewrite joins of [..., 1] and [..., 1] in an ``openvino.Model`` of fixed sizes, in place: ``even * [1, 0] +
    odd * [0, 1]``. The plug-in puts it into the element-wise kernel that makes the two, here the rotary turn.

    Returns:
        How many were rewritten.
    """
    from openvino import opset13 as op

    count = 0
    for node in model.get_ordered_ops():
        if not _interleaves(node):
            continue
        even, odd = (
            op.multiply(part, constant(np.array(place)))
            for part, place in zip(node.input_values(), ([1.0, 0.0], [0.0, 1.0]), strict=True)
        )
        put_in_place(node, op.add(even, odd))
        count += 1
    return count


def _interleaves(node: Any) -> bool:
    """Whether a node joins two float32 tensors [..., 1] along their last axis."""
    if node.get_type_name() != "Concat" or not node.get_output_partial_shape(0).is_static:
        return False
    shape = list(node.get_output_shape(0))
    along_last = node.get_attributes()["axis"] in (-1, len(shape) - 1)
    two = len(node.inputs()) == 2 and len(shape) > 1 and shape[-1] == 2 and list(node.input(0).get_shape())[-1] == 1
    return along_last and two and node.get_element_type().get_type_name() == "f32"
