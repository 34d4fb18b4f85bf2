"""Parts of the full U-Net (256x256, 16 frames, two guidance branches) as the export writes them, and their rewrites."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.openvino.interleaving import use_sums_for_interleaving
from ...runtime.openvino.phase_convolutions import use_shared_phases
from ...runtime.openvino.spatial_winograd import use_spatial_winograd
from ...runtime.openvino.split_products import split_products
from ...runtime.openvino.temporal_winograd import use_temporal_winograd

FRAMES, BRANCHES = 16, 2
ROWS = FRAMES * BRANCHES

Build = Callable[[Any], Any]


@dataclass(frozen=True)
class Case:
    """A part of the graph.

    Attributes:
        name: what it is, with channels and size.
        shape: of its input, float32.
        build: the part's node behind a parameter.
        rewrite: changes an ``openvino.Model`` in place, says how often.
    """

    name: str
    shape: tuple[int, ...]
    build: Build
    rewrite: Callable[[Any], int]

    def model(self) -> Any:
        """The part as an ``openvino.Model`` of its own; the same weights every time."""
        import openvino
        from openvino import opset13 as op

        parameter = op.parameter(list(self.shape), np.float32)
        return openvino.Model([op.result(self.build(parameter))], [parameter])

    def input(self) -> NDArray[np.float32]:
        return _draw(*self.shape, seed=7)


def cases() -> list[Case]:
    """One of every kind of part that is rewritten, and of every size of map."""
    levels = ((320, 32), (640, 16), (1280, 8), (1280, 4))
    return [
        *(
            Case(f"3x3 convolution, {c} channels, {n}x{n}", (ROWS, c, n, n), _convolution(c), use_spatial_winograd)
            for c, n in levels
        ),
        *(
            Case(
                f"convolution along the frames, {c} channels, {n}x{n}",
                (BRANCHES, c, FRAMES, n * n),
                _frame_convolution(c),
                use_temporal_winograd,
            )
            for c, n in levels
        ),
        *(
            Case(
                f"upsampling and its convolution, {c} channels, {n}x{n} to {2 * n}x{2 * n}",
                (ROWS, c, n, n),
                _upsampling(c),
                use_shared_phases,
            )
            for c, n in ((640, 16), (1280, 8), (1280, 4))
        ),
        *(
            Case(f"GEGLU, {c} channels, {n}x{n}", (BRANCHES, FRAMES, n * n, c), _geglu(c), split_products)
            for c, n in levels[:3]
        ),
        *(
            Case(
                f"joining of rotary pairs, {c} channels, {n}x{n}",
                (BRANCHES, FRAMES, n * n, c // 4),
                _interleaving,
                use_sums_for_interleaving,
            )
            for c, n in levels[:3]
        ),
    ]


def _draw(*shape: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _weights(*shape: int, seed: int = 1) -> NDArray[np.float32]:
    """Weights [c_out, ...] that keep the size of what they are applied to."""
    return _draw(*shape, seed=seed) / np.float32(np.sqrt(np.prod(shape[1:])))


def _ints(*values: int) -> Any:
    from openvino import opset13 as op

    return op.constant(np.array(values, np.int64))


def _convolution(channels: int) -> Build:
    from openvino import opset13 as op

    kernel = _weights(channels, channels, 3, 3)
    return lambda x: op.convolution(x, op.constant(kernel), [1, 1], [1, 1], [1, 1], [1, 1])


def _frame_convolution(channels: int) -> Build:
    from openvino import opset13 as op

    kernel = _weights(channels, channels, 3, 1)
    return lambda x: op.convolution(x, op.constant(kernel), [1, 1], [1, 0], [1, 0], [1, 1])


def _upsampling(channels: int) -> Build:
    """Four 2x2 convolutions of a 3x3 kernel's taps, added where they meet the same pixel; then the pixels' shuffle."""
    from openvino import opset13 as op

    kernel = _weights(channels, channels, 3, 3)
    meets = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)

    def build(x: Any) -> Any:
        rows, _, height, width = x.get_output_shape(0)
        padded = op.pad(x, _ints(0, 0, 1, 1), _ints(0, 0, 1, 1), "constant", op.constant(np.float32(0)))
        phases = []
        for row in (0, 1):
            for column in (0, 1):
                taps = np.einsum("au,bv,oiuv->oiab", meets[row], meets[column], kernel)
                cut = op.slice(padded, _ints(row), _ints(row + height + 1), _ints(1), _ints(2))
                cut = op.slice(cut, _ints(column), _ints(column + width + 1), _ints(1), _ints(3))
                phase = op.convolution(cut, op.constant(taps), [1, 1], [0, 0], [0, 0], [1, 1])
                phases.append(op.unsqueeze(phase, _ints(2)))
        stacked = op.reshape(op.concat(phases, 2), _ints(rows, 4 * channels, height, width), False)
        return op.depth_to_space(stacked, "depth_first", 2)

    return build


def _geglu(channels: int) -> Build:
    from openvino import opset13 as op

    weight, bias = _weights(8 * channels, channels), _draw(8 * channels, seed=2)

    def build(x: Any) -> Any:
        product = op.add(op.matmul(x, op.constant(weight), False, True), op.constant(bias))
        value, gate = op.split(product, op.constant(np.array(3, np.int64)), 2).outputs()
        return op.multiply(value, op.gelu(gate, "erf"))

    return build


def _interleaving(x: Any) -> Any:
    """The two channels of a pair, each from one element-wise kernel, side by side."""
    from openvino import opset13 as op

    pair = [op.multiply(x, op.constant(np.float32(factor))) for factor in (0.6, 0.8)]
    return op.concat([op.unsqueeze(part, _ints(-1)) for part in pair], -1)
