"""Calls from several threads on one model: they run one at a time in order of arrival, and each can be cancelled."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import CancelledError, UserError
from .one_process import OneProcess


class CancelToken(OneProcess):
    """Cancels one call, from any thread, before it starts, while it waits for its turn or while it runs.

    Examples:
        >>> token = CancelToken()
        >>> threading.Timer(2.0, token.cancel).start()
        >>> animate("photo.jpg", "zoom in", cancel_token=token)  # raises CancelledError after two seconds
    """

    def __init__(self) -> None:
        super().__init__()
        # Reentrant: a signal handler may cancel while the same thread holds it.
        self._lock = threading.RLock()
        self._listeners: list[Callable[[], None]] = []
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        """Cancel the call; returns at once. A cancelled token stays cancelled: use a new one for the next call."""
        with self._lock:
            self._cancelled = True
            for listener in list(self._listeners):
                listener()

    def check(self) -> None:
        """Raise :class:`CancelledError` if :meth:`cancel` was called."""
        if self._cancelled:
            raise CancelledError

    @contextmanager
    def listening(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call `listener` on a cancellation within the block, at most until the block ends.

        Raises:
            CancelledError: the token is cancelled already.
        """
        with self._lock:
            self.check()
            self._listeners.append(listener)
        try:
            yield
        finally:
            # A cancellation holds the lock while it calls listeners, so none of them acts after the block.
            with self._lock:
                self._listeners.remove(listener)


class _Turn:
    """The place of one call in the queue."""

    def __init__(self, token: CancelToken | None) -> None:
        self.token, self.thread, self.wake = token, threading.get_ident(), threading.Event()


class CallQueue:
    """A first-come, first-served lock whose waiting callers can be cancelled; ``threading.Lock`` has no order."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._turns: deque[_Turn] = deque()
        """The first one runs."""

    @contextmanager
    def turn(self, token: CancelToken | None) -> Iterator[None]:
        """Wait until every earlier call has ended, and keep later ones waiting during the block.

        Args:
            token: cancels the wait; None: nothing does, :meth:`cancel` neither.

        Raises:
            CancelledError: the token was cancelled before the turn came.
            UserError: this thread is in a turn already, so that it would wait for itself.
        """
        turn = _Turn(token)
        if token is None:
            token = CancelToken()
        with self._lock:
            if self.runs_here():
                raise UserError(
                    "a callback of a running call started another call on the same model, which would wait for "
                    "itself: start it after the first call has returned, or on another thread."
                )
            self._turns.append(turn)
            if self._turns[0] is turn:
                turn.wake.set()
        try:
            with token.listening(turn.wake.set):
                turn.wake.wait()
            token.check()
            yield
        finally:
            with self._lock:
                self._turns.remove(turn)
                if self._turns:
                    self._turns[0].wake.set()

    def runs_here(self) -> bool:
        """Whether this thread is in a turn."""
        with self._lock:
            return any(turn.thread == threading.get_ident() for turn in self._turns)

    def cancel(self) -> None:
        """Cancel the running call and every waiting one; calls that arrive later are not affected."""
        with self._lock:
            for turn in list(self._turns):
                if turn.token is not None:
                    turn.token.cancel()
