"""3x3 convolutions by minimal filtering, which OpenVINO's processor plug-in has not: a rewrite of the loaded graph.

    input tiles -> (m + 2)^2 "kinds" of linear combinations -> one matrix product per kind -> output tiles

F(4, 3) takes a quarter of the multiplications and four times the weights; where the map is small the weights are what
takes time and memory, and F(2, 3) is taken: 4/9 of the multiplications, 16/9 of the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .minimal_filtering import F2, F4, MIN_CHANNELS, MIN_PRODUCT_ROWS, Filtering
from .nodes import constant, matmul, products_of_kinds, reshape, rewrite_convolutions, transpose

# From this many positions of a map on, a tile has 4 outputs along an axis.
LARGE_MAP = 256


def use_spatial_winograd(model: Any) -> int:
    """Rewrite the 3x3 convolutions of an ``openvino.Model`` of fixed sizes that gain by it, in place.

    Returns:
        How many were rewritten.
    """
    return rewrite_convolutions(model, (3, 3), (1, 1), _where_it_gains)


def _where_it_gains(data: Any, kernel: NDArray[np.float32]) -> Any:
    """[n, c_in, h, w] with [c_out, c_in, 3, 3] by minimal filtering; None: directly, it is too small or odd."""
    rows, _, height, width = data.get_shape()
    filtering = F4 if height * width >= LARGE_MAP else F2
    whole_tiles = height % filtering.outputs == width % filtering.outputs == 0
    large = rows * height * width >= MIN_PRODUCT_ROWS * filtering.outputs**2 and min(kernel.shape[:2]) >= MIN_CHANNELS
    return _winograd(data, kernel, filtering) if whole_tiles and large else None


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
