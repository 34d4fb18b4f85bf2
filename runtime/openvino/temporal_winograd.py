"""Convolutions along the frames, kernel (3, 1) over [frames, positions], by minimal filtering F(4, 3): half of the
multiplications, twice the weights. A rewrite of the loaded graph.

    frames -> 6 "kinds" of every 4 frames -> one matrix product per kind -> frames
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .minimal_filtering import F4, MIN_CHANNELS, MIN_PRODUCT_ROWS
from .nodes import constant, matmul, products_of_kinds, reshape, rewrite_convolutions, transpose


def use_temporal_winograd(model: Any) -> int:
    """Rewrite the (3, 1) convolutions of an ``openvino.Model`` of fixed sizes that gain by it, in place.

    Returns:
        How many were rewritten.
    """
    return rewrite_convolutions(model, (3, 1), (1, 0), _where_it_gains)


def _where_it_gains(data: Any, kernel: NDArray[np.float32]) -> Any:
    """[clips, c_in, frames, positions] with [c_out, c_in, 3, 1] by minimal filtering; None: directly."""
    clips, _, frames, positions = data.get_shape()
    if frames % F4.outputs or min(kernel.shape[:2]) < MIN_CHANNELS:
        return None
    large = clips * frames // F4.outputs * positions >= MIN_PRODUCT_ROWS
    return _winograd(data, kernel[..., 0]) if large else None


def _winograd(data: Any, taps: NDArray[np.float32]) -> Any:
    """The convolution of [clips, c_in, frames, positions] with [c_out, c_in, 3] as matrix products over tiles."""
    clips, channels_in, frames, positions = data.get_shape()
    channels_out, kinds, tiles = taps.shape[0], F4.kinds, frames // F4.outputs
    # Frames first: one small matrix then transforms all clips at once.
    x = reshape(transpose(data, 2, 0, 3, 1), frames, clips * positions * channels_in)
    x = matmul(constant(F4.tile_input(frames).reshape(-1, frames)), x)
    x = reshape(x, kinds, tiles * clips * positions, channels_in)
    weights = np.einsum("kt,oit->kio", F4.kernel_matrix, taps).astype(np.float32)
    x = products_of_kinds(x, weights)
    x = reshape(x, kinds * tiles, clips * positions * channels_out)
    x = matmul(constant(F4.tile_output(frames).reshape(frames, -1)), x)
    return transpose(reshape(x, frames, clips, positions, channels_out), 1, 3, 0, 2)
