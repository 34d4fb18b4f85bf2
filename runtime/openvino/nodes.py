"""The few OpenVINO nodes that the rewrites of a graph are made of. Needs openvino when called, not when imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def constant(values: NDArray[Any]) -> Any:
    """A float32 constant."""
    from openvino import opset13 as op

    return op.constant(np.ascontiguousarray(values, np.float32))


def reshape(x: Any, *shape: int) -> Any:
    from openvino import opset13 as op

    return op.reshape(x, op.constant(np.array(shape, np.int64)), False)


def transpose(x: Any, *order: int) -> Any:
    from openvino import opset13 as op

    return op.transpose(x, op.constant(np.array(order, np.int64)))


def matmul(a: Any, b: Any, *, transpose_b: bool = False) -> Any:
    from openvino import opset13 as op

    return op.matmul(a, b, False, transpose_b)


def products_of_kinds(x: Any, weights: NDArray[np.float32]) -> Any:
    """[kinds, n, c_in] with weights [kinds, c_in, c_out] -> [kinds, n, c_out].

    One product per kind: the plug-in's product of a batch of matrices reaches half the speed of single ones. Cutting
    and joining along the first axis copies nothing.
    """
    from openvino import opset13 as op

    parts = op.split(x, op.constant(np.array(0, np.int64)), len(weights)).outputs()
    return op.concat([matmul(part, constant(weight)) for part, weight in zip(parts, weights, strict=True)], 0)


def constant_value(node: Any) -> NDArray[Any] | None:
    """The values of a constant; None for any other node."""
    return np.asarray(node.data) if node.get_type_name() == "Constant" else None


def rewrite_convolutions(
    model: Any, taps: Sequence[int], pads: Sequence[int], form: Callable[[Any, NDArray[np.float32]], Any]
) -> int:
    """Rewrite the plain float32 convolutions of a model (fixed sizes, no strides, no dilations, these taps and these
    zeros around), in place.

    Args:
        form: (data, kernel [c_out, c_in, *taps]) -> the node of another form, or None to leave it.

    Returns:
        How many were rewritten.
    """
    count = 0
    for node in model.get_ordered_ops():
        kernel = plain_kernel(node, taps, pads)
        new = None if kernel is None else form(node.input_value(0), kernel)
        if new is not None:
            put_in_place(node, new)
            count += 1
    return count


def plain_kernel(node: Any, taps: Sequence[int], pads: Sequence[int]) -> NDArray[np.float32] | None:
    """The constant kernel [c_out, c_in, *taps] of such a convolution; None for any other node."""
    if node.get_type_name() != "Convolution" or node.get_element_type().get_type_name() != "f32":
        return None
    kernel = node.input_value(1).get_node()
    if kernel.get_type_name() != "Constant" or not node.input_value(0).get_partial_shape().is_static:
        return None
    attributes = node.get_attributes()
    plain = attributes["strides"] == attributes["dilations"] == [1, 1] and attributes["auto_pad"] == "explicit"
    padded = attributes["pads_begin"] == attributes["pads_end"] == list(pads)
    fits = plain and padded and list(kernel.get_output_shape(0))[2:] == list(taps)
    return np.asarray(kernel.data, np.float32) if fits else None


def put_in_place(old: Any, new: Any) -> None:
    """Let all who read `old` read `new`, under the old name."""
    new.set_friendly_name(old.get_friendly_name())
    old.output(0).replace(new.output(0))
