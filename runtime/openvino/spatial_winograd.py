"""3x3 convolutions by minimal filtering, which OpenVINO's processor plug-in has not: a rewrite of the loaded graph.

    input tiles -> (m + 2)^2 "kinds" of linear combinations -> one matrix product per kind -> output tiles

F(4, 3) takes a quarter of the multiplications and four times the weights; where the map is smallest the weights are
what takes time and memory, and F(2, 3) is taken: 4/9 of the multiplications, 16/9 of the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .minimal_filtering import F2, F4, MIN_CHANNELS, MIN_PRODUCT_ROWS, Filtering
from .nodes import rewrite_convolutions
from .transformed_products import products_between_transforms

# From this many positions of a map on, a tile has 4 outputs along an axis.
LARGE_MAP = 64


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
    _, _, height, width = data.get_shape()
    return products_between_transforms(
        data,
        _kernel_kinds(kernel, filtering),
        (filtering.tile_input(height), filtering.tile_input(width)),
        (filtering.tile_output(height), filtering.tile_output(width)),
    )


def _kernel_kinds(kernel: NDArray[np.float32], filtering: Filtering) -> NDArray[np.float32]:
    """[c_out, c_in, 3, 3] -> [kinds * kinds, c_in, c_out], row-major kinds."""
    combined = np.kron(filtering.kernel_matrix, filtering.kernel_matrix).astype(np.float32)
    out, channels = kernel.shape[:2]
    taps = np.ascontiguousarray(kernel.reshape(out, channels, 9).transpose(2, 1, 0))
    return (combined @ taps.reshape(9, -1)).reshape(-1, channels, out)
