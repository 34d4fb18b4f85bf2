"""Winograd convolutions for OpenVINO's processor plug-in, which has none: a rewrite of the loaded graph.

A convolution of kernel 3 computes m outputs from m + 2 inputs; the minimal filtering algorithm F(m, 3) needs m + 2
multiplications for them instead of 3 m (Lavin and Gray 2016, arXiv:1509.09308). A 3x3 convolution becomes

    input tiles -> (m + 2)^2 "kinds" of linear combinations -> one matrix product per kind -> output tiles

The algebra is exact; in float32 the rounding error of a convolution grows to about 4e-6 of its norm, so reduced
precisions keep direct convolutions. F(4, 3) takes a quarter of the multiplications and four times the weights; where
the map is small the weights are what takes time and memory, and F(2, 3) is taken: 4/9 of the multiplications, 16/9 of
the weights. The (3, 1) convolutions over the frames gain nothing measurable (they are 6 % of the work) and stay direct.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

# Below these sizes the transforms cost more than they save, or the weights do.
MIN_CHANNELS = 64
MIN_POSITIONS = 64
# From this many positions of a map on, a tile has 4 outputs along an axis.
LARGE_MAP = 256


@dataclass(frozen=True)
class Filtering:
    """F(m, 3): ``outputs = output @ ((kernel_matrix @ taps) * (input_matrix @ inputs))``."""

    input_matrix: Matrix
    """[m + 2, m + 2]"""
    kernel_matrix: Matrix
    """[m + 2, 3]"""
    output_matrix: Matrix
    """[m, m + 2]"""

    @property
    def outputs(self) -> int:
        return len(self.output_matrix)

    def tile_input(self, length: int) -> Matrix:
        """[kinds * tiles, length]: the kinds of every tile of an axis with one zero at both ends; kind-major."""
        kinds, tiles = len(self.input_matrix), length // self.outputs
        matrix = np.zeros((kinds, tiles, length + 2))
        for tile in range(tiles):
            first = tile * self.outputs
            matrix[:, tile, first : first + kinds] = self.input_matrix
        return matrix[:, :, 1:-1].reshape(kinds * tiles, length)

    def tile_output(self, length: int) -> Matrix:
        """[length, kinds * tiles]: the way back."""
        kinds, tiles = len(self.input_matrix), length // self.outputs
        matrix = np.zeros((tiles, self.outputs, kinds, tiles))
        for tile in range(tiles):
            matrix[tile, :, :, tile] = self.output_matrix
        return matrix.reshape(length, kinds * tiles)


F2 = Filtering(
    np.array([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    np.array([[1.0, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
    np.array([[1.0, 1, 1, 0], [0, 1, -1, -1]]),
)
F4 = Filtering(
    np.array(
        [
            [4.0, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ]
    ),
    np.array(
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ]
    ),
    np.array([[1.0, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]),
)


def use_winograd(model: Any) -> int:
    """Rewrite the 3x3 convolutions of an ``openvino.Model`` of fixed sizes that gain by it, in place.

    Returns:
        How many were rewritten.
    """
    count = 0
    for node in model.get_ordered_ops():
        filtering = _filtering(node) if node.get_type_name() == "Convolution" else None
        if filtering is not None:
            kernel = node.input_value(1).get_node().data
            result = _winograd(node.input_value(0), np.asarray(kernel, np.float32), filtering)
            result.set_friendly_name(node.get_friendly_name())
            node.output(0).replace(result.output(0))
            count += 1
    return count


def _filtering(node: Any) -> Filtering | None:
    """How to compute a convolution; None: directly, it is of another kind or too small."""
    data, kernel = node.input_value(0), node.input_value(1).get_node()
    if kernel.get_type_name() != "Constant" or not data.get_partial_shape().is_static:
        return None
    if node.get_element_type().get_type_name() != "f32":
        return None
    attributes = node.get_attributes()
    plain = attributes["strides"] == [1, 1] and attributes["dilations"] == [1, 1]
    padded = attributes["pads_begin"] == attributes["pads_end"] == [1, 1] and attributes["auto_pad"] == "explicit"
    channels_out, channels_in, *taps = kernel.get_output_shape(0)
    if not (plain and padded and taps == [3, 3] and min(channels_in, channels_out) >= MIN_CHANNELS):
        return None
    height, width = list(data.get_shape())[2:]
    filtering = F4 if height * width >= LARGE_MAP else F2
    fits = height % filtering.outputs == 0 and width % filtering.outputs == 0
    return filtering if fits and height * width >= MIN_POSITIONS else None


def _winograd(data: Any, kernel: NDArray[np.float32], filtering: Filtering) -> Any:
    """The convolution of [n, c_in, h, w] with [c_out, c_in, 3, 3] as matrix products over tiles."""
    from openvino import opset13 as op

    rows, channels_in, height, width = data.get_shape()
    channels_out = kernel.shape[0]
    kinds = len(filtering.input_matrix)
    tiles_h, tiles_w = height // filtering.outputs, width // filtering.outputs

    def constant(values: NDArray[Any]) -> Any:
        return op.constant(np.ascontiguousarray(values, np.float32))

    def reshape(x: Any, *shape: int) -> Any:
        return op.reshape(x, op.constant(np.array(shape, np.int64)), False)

    def transpose(x: Any, *order: int) -> Any:
        return op.transpose(x, op.constant(np.array(order, np.int64)))

    # Channels last: the transforms then combine whole rows of channels.
    x = reshape(transpose(data, 0, 2, 3, 1), rows * height, width, channels_in)
    x = op.matmul(constant(filtering.tile_input(width)), x, False, False)
    x = reshape(x, rows, height, kinds * tiles_w * channels_in)
    x = op.matmul(constant(filtering.tile_input(height)), x, False, False)
    x = transpose(reshape(x, rows, kinds, tiles_h, kinds, tiles_w, channels_in), 1, 3, 0, 2, 4, 5)
    # One product per kind: the plug-in's product of a batch of matrices reaches half the speed of single ones.
    x = reshape(x, kinds * kinds, rows * tiles_h * tiles_w, channels_in)
    parts = op.split(x, op.constant(np.array(0, np.int64)), kinds * kinds).outputs()
    weights = _kernel_kinds(kernel, filtering)
    products = [op.matmul(part, constant(weight), False, False) for part, weight in zip(parts, weights, strict=True)]
    x = reshape(op.concat(products, 0), kinds, kinds, rows, tiles_h, tiles_w, channels_out)
    x = reshape(transpose(x, 2, 0, 3, 1, 4, 5), rows, kinds * tiles_h, kinds * tiles_w * channels_out)
    x = op.matmul(constant(filtering.tile_output(height)), x, False, False)
    x = reshape(x, rows * height, kinds * tiles_w, channels_out)
    x = op.matmul(constant(filtering.tile_output(width)), x, False, False)
    return transpose(reshape(x, rows, height, width, channels_out), 0, 3, 1, 2)


def _kernel_kinds(kernel: NDArray[np.float32], filtering: Filtering) -> NDArray[np.float32]:
    """[c_out, c_in, 3, 3] -> [kinds * kinds, c_in, c_out], row-major kinds."""
    combined = np.kron(filtering.kernel_matrix, filtering.kernel_matrix).astype(np.float32)
    out, channels = kernel.shape[:2]
    taps = np.ascontiguousarray(kernel.reshape(out, channels, 9).transpose(2, 1, 0))
    return (combined @ taps.reshape(9, -1)).reshape(-1, channels, out)
