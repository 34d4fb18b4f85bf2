"""What is kept of an activation, and the scale that loses least of it in 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from ..weights import LARGEST, NUMPY_TYPES

Values = NDArray[np.float32]

# Shares of the largest magnitude that may be where clipping begins.
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05)


@dataclass(frozen=True)
class ActivationScale:
    """How an activation becomes 8 bits."""

    scale: float
    """A float16 number: one step for INT8."""
    loss: float
    """Relative L2 of the values that were kept, there and back."""


class ActivationRange:
    """The largest magnitude of an activation over all runs, and some of its values from each."""

    def __init__(self) -> None:
        self.largest = 0.0
        self._parts: list[Values] = []

    def add(self, largest: float, values: Values) -> None:
        """What one run told; a value that is not finite makes the range useless, and :meth:`scale` says so."""
        self.largest = max(self.largest, float(largest)) if np.isfinite(largest) else float("inf")
        self._parts.append(np.array(values, np.float32))

    @property
    def values(self) -> Values:
        return np.concatenate(self._parts)

    def scale(self, elem_type: int) -> ActivationScale:
        """The scale of least squared error: the few largest values are clipped where that helps all others.

        As in Banner et al. (2019), arXiv:1810.05723, but on the values themselves instead of a fitted distribution.

        Args:
            elem_type: ONNX type, INT8 or FLOAT8E4M3FN.

        Raises:
            OverflowError: a value was not finite.
        """
        if not np.isfinite(self.largest):
            raise OverflowError("an activation is not finite in float32")
        values = self.values
        power = float(np.sum(np.square(values, dtype=np.float64))) or 1.0
        found = {scale: _error(values, scale, elem_type) for scale in self._candidates(elem_type)}
        best = min(found, key=lambda scale: found[scale])
        return ActivationScale(best, float(np.sqrt(found[best] / power)))

    def _candidates(self, elem_type: int) -> list[float]:
        tiny = float(np.finfo(np.float16).tiny)
        scales = [max(self.largest * share / LARGEST[elem_type], tiny) for share in _SHARES]
        return [float(np.float16(min(scale, 65504.0))) for scale in scales]


def _error(values: Values, scale: float, elem_type: int) -> float:
    largest = LARGEST[elem_type]
    ratio = np.clip(values / np.float32(scale), -largest, largest)
    back: Any = np.rint(ratio) if elem_type == TensorProto.INT8 else ratio.astype(NUMPY_TYPES[elem_type])
    difference = back.astype(np.float32) * np.float32(scale) - values
    return float(np.sum(np.square(difference, dtype=np.float64)))
