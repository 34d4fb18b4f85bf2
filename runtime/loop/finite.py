"""The check that a stage's output consists of finite numbers: without it a black or grey video looks like a result."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError


def is_finite(array: NDArray[Any]) -> bool:
    """Whether every number is finite; uint16 holds the bits of bfloat16, as NumPy has no such type."""
    if array.dtype == np.uint16:
        return not bool(((array & 0x7F80) == 0x7F80).any())
    return bool(np.isfinite(array).all())


def check_finite(stage: str, precision: str, arrays: Iterable[NDArray[Any]]) -> None:
    """Refuse, with a :class:`UserError`, NaN and infinity in a stage's output in this precision."""
    if not all(map(is_finite, arrays)):
        raise not_finite(stage, precision)


def not_finite(stage: str, precision: str) -> UserError:
    """The error for a stage whose output holds NaN or infinity; half precision has another remedy than float32."""
    remedy = (
        "check the bundle with 'consisti2v inspect BUNDLE --verify' and the guidance scales, or export it again"
        if precision == "fp32"
        else "choose --precision fp32, or check the bundle with 'consisti2v inspect BUNDLE --verify'"
    )
    return UserError(f"stage {stage} produced values that are not finite (NaN or infinity) in {precision}: {remedy}.")
