"""SIGTERM and SIGHUP end a command as Ctrl-C does: nothing half-written stays, and no process of ours."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING_SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Ending:
    """Which signal ended the command; None: none of them, so that it was Ctrl-C."""

    signal: int | None = None

    @property
    def exit_code(self) -> int:
        """As a shell tells it: 128 and the signal's number."""
        return 128 + (signal.SIGINT if self.signal is None else self.signal)


@contextmanager
def ending_signals() -> Iterator[Ending]:
    """Turn the signals into a :class:`KeyboardInterrupt` of the main thread; an ignored one (``nohup``) stays so."""
    ending = Ending()
    if threading.current_thread() is not threading.main_thread():
        yield ending
        return
    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    taken = [number for number, handler in before.items() if handler != signal.SIG_IGN]

    def end(number: int, frame: FrameType | None) -> None:
        ending.signal = number
        # A closing terminal sends both, and more than once: cleaning up is not to be interrupted.
        for each in taken:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in taken:
        signal.signal(number, end)
    try:
        yield ending
    finally:
        for number in taken:
            signal.signal(number, before[number])
