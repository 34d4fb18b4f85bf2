"""3x3 convolutions by minimal filtering, which OpenVINO's processor plug-in has not: a rewrite of the loaded graph.

    input tiles -> (m + 2)^2 "kinds" of linear combinations -> one matrix product per kind -> output tiles

F(4, 3) takes a quarter of the multiplications and four times the weights; where the map is small the weights are what
takes time and memory, and F(2, 3) is taken: 4/9 of the multiplications, 16/9 of the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .minimal_filtering import F2, F4, Filtering
from .nodes import constant, convolution_kernel, matmul, products_of_kinds, put_in_place, reshape, transpose

# Below these sizes the transforms cost more than they save, or the weights do.
MIN_CHANNELS = 64
MIN_PRODUCT_ROWS = 64
# From this many positions of a map on, a tile has 4 outputs along an axis.
LARGE_MAP = 256


def use_spatial_winograd(model: Any) -> int:
    """Rewrite the 3x3 convolutions of an ``openvino.Model`` of fixed sizes that gain by it, in place.

    Returns:
        How many were rewritten.
    """
    count = 0
    for node in model.get_ordered_ops():
        kernel = convolution_kernel(node, (3, 3), (1, 1), MIN_CHANNELS)
        filtering = None if kernel is None else _filtering(node.input_value(0).get_shape())
        if filtering is not None:
            put_in_place(node, _winograd(node.input_value(0), np.asarray(kernel.data, np.float32), filtering))
            count += 1
    return count


def _filtering(shape: Any) -> Filtering | None:
    """How to compute a convolution of [n, c, h, w]; None: directly, it is too small or odd."""
    rows, _, height, width = shape
    filtering = F4 if height * width >= LARGE_MAP else F2
    if height % filtering.outputs or width % filtering.outputs:
        return None
    return filtering if rows * height * width >= MIN_PRODUCT_ROWS * filtering.outputs**2 else None


def _winograd(data: Any, kernel: NDArray[np.float32], filtering: Filtering) -> Any:
    """The convolution of [n, c_in, h, w] with [c_out, c_in, 3, 3] as matrix products over tiles."""
    rows, channels_in, height, width = data.get_shape()
    channels_out, kinds = kernel.shape[0], filtering.kinds
    tiles_h, tiles_w = height // filtering.outputs, width // filtering.outputs
    # Channels last: the transforms then combine whole rows of channels.
    x = reshape(transpose(data, 0, 2, 3, 1), rows * height, width, channels_in)
    x = matmul(constant(filtering.tile_input(width).reshape(-1, width)), x)
    x = reshape(x, rows, height, kinds * tiles_w * channels_in)
    x = matmul(constant(filtering.tile_input(height).reshape(-1, height)), x)
    x = transpose(reshape(x, rows, kinds, tiles_h, kinds, tiles_w, channels_in), 1, 3, 0, 2, 4, 5)
    x = reshape(x, kinds * kinds, rows * tiles_h * tiles_w, channels_in)
    x = products_of_kinds(x, _kernel_kinds(kernel, filtering))
    x = reshape(x, kinds, kinds, rows, tiles_h, tiles_w, channels_out)
    x = reshape(transpose(x, 2, 0, 3, 1, 4, 5), rows, kinds * tiles_h, kinds * tiles_w * channels_out)
    x = matmul(constant(filtering.tile_output(height).reshape(height, -1)), x)
    x = reshape(x, rows * height, kinds * tiles_w, channels_out)
    x = matmul(constant(filtering.tile_output(width).reshape(width, -1)), x)
    return transpose(reshape(x, rows, height, width, channels_out), 0, 3, 1, 2)


def _kernel_kinds(kernel: NDArray[np.float32], filtering: Filtering) -> NDArray[np.float32]:
    """[c_out, c_in, 3, 3] -> [kinds * kinds, c_in, c_out], row-major kinds."""
    combined = np.kron(filtering.kernel_matrix, filtering.kernel_matrix).astype(np.float32)
    out, channels = kernel.shape[:2]
    taps = np.ascontiguousarray(kernel.reshape(out, channels, 9).transpose(2, 1, 0))
    return (combined @ taps.reshape(9, -1)).reshape(-1, channels, out)
