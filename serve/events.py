"""Server-sent events of ``/v1/videos/{id}/events``: each event once, in order, including those a client missed.

Ids grow with every event of a job, over restarts of the server too: each run of a job has a million of its own. Events
of finished jobs are kept for the last few hundred; after that a client gets the result alone.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from .job import Job

_A_RUN = 1_000_000
_KEPT_JOBS = 300
_KEEP_ALIVE_SECONDS = 15.0


class Events:
    """The events of every job, and who waits for them."""

    def __init__(self) -> None:
        self._logs: dict[str, list[tuple[int, str, dict[str, Any]]]] = {}
        self._ended: deque[str] = deque()
        self._previews: dict[str, tuple[int, str]] = {}
        self._followers: dict[str, set[asyncio.Event]] = {}
        self._is_closed = False

    def add(self, job: Job, name: str, data: dict[str, Any], preview: str | None = None) -> None:
        """An event of a job; of its previews the newest alone is kept."""
        log = self._logs.setdefault(job.id, [])
        number = max(log[-1][0] if log else 0, job.runs * _A_RUN) + 1
        log.append((number, name, data))
        if preview is not None:
            self._previews[job.id] = number, preview
        if job.is_finished:
            self._previews.pop(job.id, None)
            self._ended.append(job.id)
            if len(self._ended) > _KEPT_JOBS:
                self._logs.pop(self._ended.popleft(), None)
        self.touch(job.id)

    def forget(self, job_id: str) -> None:
        """Of a job that was deleted."""
        self._logs.pop(job_id, None)
        self._previews.pop(job_id, None)
        self.touch(job_id)

    def touch(self, job_id: str | None = None) -> None:
        """Wake the followers of a job, or all of them: something about it changed."""
        for known, waiting in self._followers.items():
            if job_id is None or known == job_id:
                for event in waiting:
                    event.set()

    def close(self) -> None:
        """End every stream: the server stops."""
        self._is_closed = True
        self.touch()

    async def wait(self, job_id: str, seconds: float) -> None:
        """Until something about the job changes, or for so long."""
        wake = asyncio.Event()
        self._followers.setdefault(job_id, set()).add(wake)
        try:
            await asyncio.wait_for(wake.wait(), seconds)
        except asyncio.TimeoutError:
            return
        finally:
            self._leave(job_id, wake)

    async def follow(
        self, job_id: str, find: Callable[[str], Job | None], shown: Callable[[Job], dict[str, Any]], last: int
    ) -> AsyncIterator[str]:
        """The text of a stream of events, until the job has ended.

        Args:
            find: the job as it is now; None once it was deleted.
            shown: its video object.
            last: id of the last event that the client has; 0: none.
        """
        wake = asyncio.Event()
        self._followers.setdefault(job_id, set()).add(wake)
        told_position: Any = None
        try:
            yield "retry: 1000\n\n"
            while not self._is_closed:
                wake.clear()
                job = find(job_id)
                if job is None:
                    yield _text("deleted", {"id": job_id})
                    return
                log = self._logs.get(job_id, [])
                preview_of, preview = self._previews.get(job_id, (0, ""))
                for number, name, data in log:
                    if number > last:
                        yield _text(name, data | {"preview": preview} if number == preview_of else data, number)
                        last = number
                if job.is_finished:
                    if not log or log[-1][1] != job.status:
                        yield _text(job.status, final_data(job, shown(job)), (job.runs + 1) * _A_RUN - 1)
                    return
                if job.status == "queued":
                    video = shown(job)
                    state = {"position": video["queue_position"], "eta_seconds": video["eta_seconds"]}
                    if state["position"] != told_position:
                        told_position = state["position"]
                        # Without an id: it tells the present, and a client that returns gets it again.
                        yield _text("queued", state)
                try:
                    await asyncio.wait_for(wake.wait(), _KEEP_ALIVE_SECONDS)
                except asyncio.TimeoutError:
                    yield ": still there\n\n"
        finally:
            self._leave(job_id, wake)

    def _leave(self, job_id: str, wake: asyncio.Event) -> None:
        self._followers[job_id].discard(wake)
        if not self._followers[job_id]:
            del self._followers[job_id]


def final_data(job: Job, video: dict[str, Any]) -> dict[str, Any]:
    """What the last event of a job carries: the whole video object."""
    return {"error": job.error, **video} if job.status == "failed" else video


def _text(name: str, data: dict[str, Any], number: int | None = None) -> str:
    head = "" if number is None else f"id: {number}\n"
    return f"{head}event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"
