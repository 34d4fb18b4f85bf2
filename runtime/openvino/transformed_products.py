"""What minimal filtering of images comes to: maps -> combinations -> one matrix product per kind -> maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .minimal_filtering import Matrix
from .nodes import constant, matmul, products_of_kinds, reshape, transpose


def products_between_transforms(
    data: Any, weights: NDArray[np.float32], spread: tuple[Matrix, Matrix], gather: tuple[Matrix, Matrix]
) -> Any:
    """[n, c_in, h, w] -> [n, c_out, h_out, w_out].

    Args:
        data: the maps.
        weights: [kinds * kinds, c_in, c_out], the kinds of the vertical axis first.
        spread: for each axis, how its positions are combined: [kinds, tiles, length].
        gather: for each axis, how the products are: [length out, kinds, tiles].
    """
    rows, channels_in, height, width = data.get_shape()
    channels_out = weights.shape[2]
    (kinds, tiles_h, _), (_, tiles_w, _) = (matrix.shape for matrix in spread)
    height_out, width_out = (len(matrix) for matrix in gather)
    spread_h, spread_w = (constant(matrix.reshape(-1, matrix.shape[2])) for matrix in spread)
    gather_h, gather_w = (constant(matrix.reshape(len(matrix), -1)) for matrix in gather)
    # Channels last: the transforms then combine whole rows of channels.
    x = reshape(transpose(data, 0, 2, 3, 1), rows * height, width, channels_in)
    x = matmul(spread_w, x)
    x = reshape(x, rows, height, kinds * tiles_w * channels_in)
    x = matmul(spread_h, x)
    x = transpose(reshape(x, rows, kinds, tiles_h, kinds, tiles_w, channels_in), 1, 3, 0, 2, 4, 5)
    x = reshape(x, kinds * kinds, rows * tiles_h * tiles_w, channels_in)
    x = products_of_kinds(x, weights)
    x = reshape(x, kinds, kinds, rows, tiles_h, tiles_w, channels_out)
    x = reshape(transpose(x, 2, 0, 3, 1, 4, 5), rows, kinds * tiles_h, kinds * tiles_w * channels_out)
    x = matmul(gather_h, x)
    x = reshape(x, rows * height_out, kinds * tiles_w, channels_out)
    x = matmul(gather_w, x)
    return transpose(reshape(x, rows, height_out, width_out, channels_out), 0, 3, 1, 2)
