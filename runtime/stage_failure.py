"""What fails inside a backend, or gives numbers that are not finite, becomes one sentence with the stage's name.

Without the latter a black or grey video looks like a result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CancelledError, UserError, first_line

_MEMORY = ("bad_alloc", "bad allocation", "out of memory", "failed to allocate", "cannot allocate")


@contextmanager
def stage_failures(stage: str, title: str, cancelled: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Turn whatever a backend (`title`) raises while a stage is prepared or run into a :class:`UserError`, or into a
    :class:`CancelledError` where the run was told to end.
    """
    try:
        yield
    except (UserError, CancelledError):
        raise
    except Exception as error:  # each backend has its own kinds
        if cancelled():
            raise CancelledError from None
        reason = first_line(error)
        if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _MEMORY):
            raise UserError(
                f"stage {stage} needs more memory than {title} could get ({reason}): use a smaller size, fewer videos "
                "at once or --guidance-batch split, or export the bundle again if the size is that of its graph."
            ) from None
        raise UserError(
            f"stage {stage} failed in {title} ({reason}): export the bundle again, or use another --device."
        ) from None


def stage_of(file_name: str) -> str:
    """The stage that a graph's file is named after."""
    return file_name.removesuffix(".onnx")


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
