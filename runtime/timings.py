"""Seconds per stage of one generation, and the most that it may take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import CancelledError, UserError
from .request.option_table import number

MAX_SECONDS = 10 * 365 * 86400.0


class Timings(dict[str, float]):
    """Stage -> its own seconds, summed over its calls, in the order of first use.

    A stage measured inside another is taken off it, so that the values add up to the whole.
    """

    def __init__(self) -> None:
        super().__init__()
        self._inner = [0.0]
        self._open: list[str] = []

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        self.setdefault(stage, 0.0)
        self._inner.append(0.0)
        self._open.append(stage)
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self._open.pop()
            self[stage] += elapsed - self._inner.pop()
            self._inner[-1] += elapsed

    def add(self, stage: str, seconds: float) -> None:
        """Count seconds measured otherwise, by a GPU's events, inside what is being measured."""
        self[stage] = self.get(stage, 0.0) + seconds
        self._inner[-1] += seconds

    @property
    def current(self) -> str | None:
        """The innermost stage that is being measured; may be asked from another thread."""
        measured = self._open[-1:]
        return measured[0] if measured else None

    @property
    def total(self) -> float:
        return sum(self.values())

    def summary(self, least: float = 0.05) -> str:
        """``denoise 1.2 s, unet 30.1 s``: every stage of at least `least` seconds."""
        return ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.items() if seconds >= least)


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
