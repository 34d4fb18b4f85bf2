"""A watchdog: a generation that takes longer than its limit is cancelled and refused with the stage it was in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import CancelledError, UserError
from .request.option_table import number
from .timings import Timings

MAX_SECONDS = 10 * 365 * 86400.0


@contextmanager
def time_limit(seconds: float | None, cancel: Callable[[], None], timings: Timings) -> Iterator[None]:
    """Cancel what runs inside after `seconds`; None: never.

    Args:
        seconds: above 0.
        cancel: makes the running graph end with :class:`CancelledError`, as ``ImageToVideo.cancel`` does.
        timings: of the run; they know the stage.

    Raises:
        UserError: the limit was reached, or is no number above 0.
    """
    if seconds is None:
        yield
        return
    seconds = check_time_limit(seconds)
    ended, lock = False, threading.Lock()
    reached: list[str] = []

    def fire() -> None:
        with lock:
            # After the end it would cancel somebody else's run.
            if not ended:
                reached.append(timings.current or "start")
                cancel()

    watchdog = threading.Timer(seconds, fire)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    except CancelledError:
        if not reached:
            raise
        raise UserError(
            f"the time limit of {seconds:g} s was reached in stage {reached[0]}: allow more with --time-limit, take "
            "fewer steps, or do not use this bundle if it should be quick."
        ) from None
    finally:
        with lock:
            ended = True
        watchdog.cancel()
        watchdog.join()


def check_time_limit(seconds: object) -> float:
    """Refuse what is no number of seconds above 0."""
    return number(seconds, "time_limit", 0.001, MAX_SECONDS)
