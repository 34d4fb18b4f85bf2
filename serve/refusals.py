"""Why the dispatcher takes no job; the routes answer with the matching status."""

from __future__ import annotations


class QueueFullError(Exception):
    """No more jobs are taken now; holds the seconds after which a place may be free."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("the queue is full")
        self.retry_after = retry_after


class StoppingError(Exception):
    """The server is being stopped."""
