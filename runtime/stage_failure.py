"""What fails inside a backend becomes one sentence with the stage's name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
