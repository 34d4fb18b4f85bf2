"""A 3x3 convolution behind a nearest x2 upsampling, in the graph as four 2x2 convolutions of the small map (one for
each phase of the large map), by 9 products instead of 16. A rewrite of the loaded graph.

Along one axis, with the taps (w0, w1, w2) of the 3-tap kernel and s their sum,

    even output i = w0 x[i-1] + (w1 + w2) x[i] = s x[i] + w0 (x[i-1] - x[i])
    odd  output i = (w0 + w1) x[i] + w2 x[i+1] = s x[i] + w2 (x[i+1] - x[i])

three products for two outputs, zeros outside of the map; along both axes nine for four.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .minimal_filtering import MIN_CHANNELS, MIN_PRODUCT_ROWS, Matrix
from .nodes import constant, constant_value, plain_kernel, put_in_place
from .transformed_products import products_between_transforms

Phases = list[NDArray[np.float32]]
"""The kernels of the phases (even, even), (even, odd), (odd, even), (odd, odd), each [c_out, c_in, 2, 2]."""

_PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))


def use_shared_phases(model: Any) -> int:
    """Rewrite the upsampling convolutions of an ``openvino.Model`` of fixed sizes that gain by it, in place.

    Returns:
        How many were rewritten.
    """
    from openvino import opset13 as op

    count = 0
    for node in model.get_ordered_ops():
        found = _upsampling(node)
        if found is None:
            continue
        data, phases, bias = found
        new = _products(data, phases)
        put_in_place(node, op.add(new, constant(bias.reshape(1, -1, 1, 1))) if bias is not None else new)
        count += 1
    return count


def _products(data: Any, phases: Phases) -> Any:
    """The upsampling and its convolution: [n, c_in, h, w] -> [n, c_out, 2 h, 2 w]."""
    _, _, height, width = data.get_shape()
    return products_between_transforms(
        data, _kernel_kinds(phases), (_spread(height), _spread(width)), (_gather(height), _gather(width))
    )


def _spread(length: int) -> Matrix:
    """[3, length, length]: x[i], x[i-1] - x[i], x[i+1] - x[i]."""
    same = np.eye(length)
    return np.stack([same, np.eye(length, k=-1) - same, np.eye(length, k=1) - same])


def _gather(length: int) -> Matrix:
    """[2 * length, 3, length]: even outputs are the first two kinds together, odd ones the first and the last."""
    matrix = np.zeros((length, 2, 3, length))
    for i in range(length):
        matrix[i, 0, [0, 1], i] = matrix[i, 1, [0, 2], i] = 1
    return matrix.reshape(2 * length, 3, length)


def _kernel_kinds(phases: Phases) -> NDArray[np.float32]:
    """[9, c_in, c_out]: for each axis the sum of the taps, the first tap (w0), the last one (w2)."""
    # For each kind: the phase along an axis that shows it, and which of its two taps to add.
    shown = ((0, (1, 1)), (0, (1, 0)), (1, (0, 1)))
    kinds = [
        np.einsum("oiab,a,b->io", phases[2 * row + column], vertical, horizontal, dtype=np.float64)
        for row, vertical in shown
        for column, horizontal in shown
    ]
    return np.stack(kinds).astype(np.float32)


def _phases_of(kinds: NDArray[np.float32]) -> Phases:
    """The way back from :func:`_kernel_kinds`."""
    taps_of = np.array([[[0, 1, 0], [1, -1, 0]], [[1, 0, -1], [0, 0, 1]]], np.float32)
    by_axis = kinds.reshape(3, 3, *kinds.shape[1:])
    return [np.einsum("ak,bl,klio->oiab", taps_of[row], taps_of[column], by_axis) for row, column in _PLACES]


def _upsampling(node: Any) -> tuple[Any, Phases, NDArray[np.float32] | None] | None:
    """The small map, the kernels of the phases and the bias behind a shuffle of pixels; None: it is another one."""
    if node.get_type_name() != "DepthToSpace" or not node.get_output_partial_shape(0).is_static:
        return None
    attributes = node.get_attributes()
    stack = _through(node.input_value(0).get_node(), "Reshape")
    if attributes["block_size"] != 2 or attributes["mode"] != "depth_first" or stack.get_type_name() != "Concat":
        return None
    if len(stack.inputs()) != 4 or stack.get_attributes()["axis"] != 2 or len(stack.get_output_shape(0)) != 5:
        return None
    found = [_phase(value.get_node(), *place) for value, place in zip(stack.input_values(), _PLACES, strict=True)]
    phases = [phase for phase in found if phase is not None]
    if len(phases) != 4:
        return None
    data, _, bias = phases[0]
    same_data = all(other.get_node().get_friendly_name() == data.get_node().get_friendly_name() for other, *_ in phases)
    same_bias = all(np.array_equal(other, bias) for _, _, other in phases)
    kernels = [kernel for _, kernel, _ in phases]
    fits = same_data and same_bias and len({kernel.shape for kernel in kernels}) == 1 and _fit_together(kernels)
    rows, _, height, width = data.get_shape()
    large = rows * height * width >= MIN_PRODUCT_ROWS and min(kernels[0].shape[:2]) >= MIN_CHANNELS
    return (data, kernels, None if bias.size == 0 else bias) if fits and large else None


def _fit_together(phases: Phases) -> bool:
    """Whether four 2x2 kernels come from one 3x3 kernel, as those of an upsampling do."""
    return all(
        np.allclose(again, phase, rtol=0, atol=1e-5 * float(np.abs(phase).max()))
        for again, phase in zip(_phases_of(_kernel_kinds(phases)), phases, strict=True)
    )


def _phase(node: Any, row: int, column: int) -> tuple[Any, NDArray[np.float32], NDArray[np.float32]] | None:
    """(the small map, kernel [c_out, c_in, 2, 2], bias, empty for none) of one phase; None: it is something else."""
    node, bias = _through(node, "Unsqueeze"), np.empty(0, np.float32)
    if node.get_type_name() == "Add":
        operands = [node.input_value(index).get_node() for index in (0, 1)]
        node, other = sorted(operands, key=lambda operand: operand.get_type_name() == "Constant")
        value = constant_value(other)
        if value is None or list(value.shape) != [1, value.size, 1, 1]:
            return None
        bias = value.ravel()
    kernel = plain_kernel(node, (2, 2), (0, 0))
    if kernel is None:
        return None
    data = _map_behind(node.input_value(0).get_node(), [row, column])
    return None if data is None else (data, kernel, bias)


def _map_behind(node: Any, starts: list[int]) -> Any:
    """The map of which a node is a part, one larger along both axes, from these positions of the map with one zero
    around; None: it is not.
    """
    shape, found = list(node.get_output_shape(0)), {}
    while node.get_type_name() == "Slice" and len(node.inputs()) == 5:
        values = [constant_value(node.input_value(index).get_node()) for index in range(1, 5)]
        single = [int(value.item()) for value in values if value is not None and value.size == 1]
        if len(single) != 4 or single[2] != 1 or single[3] in found:
            return None
        found[single[3]] = single[0]
        node = node.input_value(0).get_node()
    if found != {2: starts[0], 3: starts[1]} or node.get_type_name() != "Pad":
        return None
    pads = [constant_value(node.input_value(index).get_node()) for index in (1, 2)]
    value = constant_value(node.input_value(3).get_node()) if len(node.inputs()) > 3 else np.zeros(1)
    zeros = value is not None and not value.any() and node.get_attributes()["pad_mode"] == "constant"
    if not zeros or any(pad is None or pad.tolist() != [0, 0, 1, 1] for pad in pads):
        return None
    data = node.input_value(0)
    height, width = list(data.get_shape())[2:]
    return data if shape[2:] == [height + 1, width + 1] else None


def _through(node: Any, kind: str) -> Any:
    """The node behind one that only changes the shape."""
    return node.input_value(0).get_node() if node.get_type_name() == kind else node
