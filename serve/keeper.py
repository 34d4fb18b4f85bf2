"""Jobs on their way to the disk: written late where it is full, deleted when they are kept long enough."""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import Callable

from .job import Job
from .logs import Log
from .options import ServerOptions
from .store import JobStore


class Keeper:
    """Writes and expires the jobs of a store."""

    def __init__(self, store: JobStore, options: ServerOptions, log: Log) -> None:
        self._store, self._options, self._log = store, options, log
        self._unsaved: dict[str, Job] = {}

    def find(self, job_id: str) -> Job | None:
        """A job whose state could not be written yet."""
        return self._unsaved.get(job_id)

    def save(self, job: Job) -> None:
        """Write a job's state; where the disk is full, it is known here and written later."""
        try:
            self._store.save(job)
            self._unsaved.pop(job.id, None)
        except sqlite3.Error as error:
            if not self._unsaved:
                self._log.error("jobs cannot be written", reason=str(error))
            self._unsaved[job.id] = job

    def save_late(self) -> None:
        """Try again what could not be written."""
        for job in list(self._unsaved.values()):
            self.save(job)

    def remove(self, job: Job) -> None:
        """Forget a job and delete its files."""
        self._unsaved.pop(job.id, None)
        self._store.remove(job.id)

    def tidy(self, forget: Callable[[str], None]) -> None:
        """Delete what is kept too long, then the oldest of what takes too much of the disk.

        Args:
            forget: told the id of each job that is gone.
        """
        jobs = deque(job for job in self._store.finished() if job.id not in self._unsaved)
        sizes = {job.id: self._store.size(job.id) for job in jobs}
        total, oldest = sum(sizes.values()), time.time() - self._options.keep_seconds
        while jobs and ((jobs[0].completed or 0) < oldest or total > self._options.keep_bytes):
            job = jobs.popleft()
            total -= sizes[job.id]
            try:
                self._store.remove(job.id)
            except sqlite3.Error as error:
                self._log.error("an old job cannot be removed", job=job.id, reason=str(error))
                return
            forget(job.id)
            self._log.info("expired", job=job.id)
