"""Minimal filtering (Winograd): m outputs of a 3-tap filter from m + 2 multiplications instead of 3 m.

F(m, 3) of Lavin and Gray (2016, arXiv:1509.09308): exact algebra; in float32 the rounding error of a convolution grows
to a few 1e-6 of its norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

# Below these sizes of a product the transforms cost more than they save, or the weights do.
MIN_CHANNELS = 64
MIN_PRODUCT_ROWS = 64


@dataclass(frozen=True)
class Filtering:
    """F(m, 3): ``outputs = output_matrix @ ((kernel_matrix @ taps) * (input_matrix @ inputs))``."""

    input_matrix: Matrix
    """[m + 2, m + 2]"""
    kernel_matrix: Matrix
    """[m + 2, 3]"""
    output_matrix: Matrix
    """[m, m + 2]"""

    @property
    def outputs(self) -> int:
        return len(self.output_matrix)

    @property
    def kinds(self) -> int:
        """Multiplications, each with a kernel of its own."""
        return len(self.input_matrix)

    def tile_input(self, length: int) -> Matrix:
        """[kinds, tiles, length]: the kinds of every tile of an axis with one zero at both ends."""
        tiles = length // self.outputs
        matrix = np.zeros((self.kinds, tiles, length + 2))
        for tile in range(tiles):
            first = tile * self.outputs
            matrix[:, tile, first : first + self.kinds] = self.input_matrix
        return matrix[:, :, 1:-1]

    def tile_output(self, length: int) -> Matrix:
        """[length, kinds, tiles]: the way back."""
        tiles = length // self.outputs
        matrix = np.zeros((tiles, self.outputs, self.kinds, tiles))
        for tile in range(tiles):
            matrix[tile, :, :, tile] = self.output_matrix
        return matrix.reshape(length, self.kinds, tiles)


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
