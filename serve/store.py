"""Jobs on disk: their rows in SQLite, their photos and videos in a folder each.

The database is in WAL mode: a killed process loses nothing that was written, a machine that loses power at most the
last moments. One thread uses it, the server's event loop; a write takes well under a millisecond.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import UserError
from .job import FINISHED, Job

_VERSION = 1
_COLUMNS = (
    "id",
    "number",
    "status",
    "created",
    "started",
    "completed",
    "runs",
    "interruptions",
    "alone",
    "request_key",
)
_IN_BODY = ("model", "prompt", "settings", "frames", "notices", "error", "timings", "loras", "weights")
IMAGE, VIDEO, FRAMES = "photo", "video.mp4", "frames.npy"
"""Files of a job's folder: the upload as it came, the video, and its frames, uint8 [frames, height, width, 3]."""


class JobStore:
    """Every job that is kept.

    Args:
        folder: made where it is missing.

    Raises:
        UserError: the folder cannot be used, or holds the jobs of another version.
    """

    def __init__(self, folder: Path) -> None:
        self._folders = folder / "jobs"
        try:
            self._folders.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
            self._database = sqlite3.connect(folder / "jobs.sqlite3", isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _VERSION):
                raise UserError(f'the jobs in "{folder}" are of another version: choose another folder with --data.')
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS jobs (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, "
                "status TEXT NOT NULL, created REAL NOT NULL, started REAL, completed REAL, runs INTEGER NOT NULL, "
                "interruptions INTEGER NOT NULL, alone INTEGER NOT NULL, request_key TEXT UNIQUE, body TEXT NOT NULL)"
            )
            self._database.execute("CREATE TABLE IF NOT EXISTS loras (model TEXT PRIMARY KEY, active TEXT NOT NULL)")
            self._database.execute("CREATE INDEX IF NOT EXISTS by_status ON jobs (status, completed)")
            self._database.execute(f"PRAGMA user_version={_VERSION}")
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f'the folder "{folder}" cannot hold the jobs ({error}): choose another one with --data.'
            ) from None

    def close(self) -> None:
        self._database.close()

    def add(self, job: Job) -> None:
        """Keep a new job; sets its number.

        Raises:
            sqlite3.Error: the disk is full, or its request key is taken.
        """
        names, values = _row(job)
        pairs = [(name, value) for name, value in zip(names, values, strict=True) if name != "number"]
        marks = ",".join("?" * len(pairs))
        cursor = self._database.execute(
            f"INSERT INTO jobs ({','.join(name for name, _ in pairs)}) VALUES ({marks})", [value for _, value in pairs]
        )
        job.number = cursor.lastrowid or 0

    def save(self, job: Job) -> None:
        """Write a job's present state."""
        names, values = _row(job)
        self._database.execute(
            f"UPDATE jobs SET {','.join(f'{name}=?' for name in names)} WHERE id=?", [*values, job.id]
        )

    def remove(self, job_id: str) -> None:
        """Forget a job and delete its files."""
        self._database.execute("DELETE FROM jobs WHERE id=?", (job_id,))
        shutil.rmtree(self._folders / job_id, ignore_errors=True)

    def loras(self) -> dict[str, list[list[Any]]]:
        """Model -> names and strengths of the LoRAs that it runs with."""
        return {
            model: json.loads(active) for model, active in self._database.execute("SELECT model, active FROM loras")
        }

    def set_loras(self, model: str, active: Sequence[Sequence[Any]]) -> None:
        """Remember what a model runs with.

        Raises:
            sqlite3.Error: the disk is full.
        """
        self._database.execute("INSERT OR REPLACE INTO loras VALUES (?, ?)", (model, json.dumps(active)))

    def find(self, job_id: str) -> Job | None:
        return next(self._jobs("WHERE id=?", job_id), None)

    def of_request(self, key: str) -> Job | None:
        """The job that a request with this key made."""
        return next(self._jobs("WHERE request_key=?", key), None)

    def unfinished(self) -> list[Job]:
        """Jobs to run, in order of arrival."""
        marks = ",".join("?" * len(FINISHED))
        return list(self._jobs(f"WHERE status NOT IN ({marks}) ORDER BY number", *FINISHED))

    def finished(self) -> list[Job]:
        """Jobs that ended, the one that ended first in front."""
        marks = ",".join("?" * len(FINISHED))
        return list(self._jobs(f"WHERE status IN ({marks}) ORDER BY completed", *FINISHED))

    def page(self, after: int | None, limit: int, *, newest_first: bool) -> list[Job]:
        """At most `limit` jobs that follow the one of number `after`."""
        order, sign = ("DESC", "<") if newest_first else ("ASC", ">")
        where, values = ("", ()) if after is None else (f"WHERE number {sign} ?", (after,))
        return list(self._jobs(f"{where} ORDER BY number {order} LIMIT ?", *values, limit))

    def folder(self, job_id: str) -> Path:
        """Where a job's files lie; the name is the server's own."""
        return self._folders / job_id

    def remove_strays(self) -> None:
        """Delete folders of no job: their requests were not finished when the server ended."""
        known = {row[0] for row in self._database.execute("SELECT id FROM jobs")}
        for folder in self._folders.iterdir():
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)

    def size(self, job_id: str) -> int:
        """Bytes of a job's files."""
        total = 0
        for file in self.folder(job_id).glob("*"):
            try:
                total += file.stat().st_size
            except OSError:  # removed meanwhile
                continue
        return total

    def _jobs(self, rest: str, *values: Any) -> Iterator[Job]:
        for row in self._database.execute(f"SELECT {','.join(_COLUMNS)}, body FROM jobs {rest}", values):
            named = dict(zip(_COLUMNS, row[:-1], strict=True))
            named["alone"] = bool(named["alone"])
            job = Job(**named, **json.loads(row[-1]))
            if job.status == "completed":
                job.step = job.steps
            yield job


def _row(job: Job) -> tuple[list[str], list[Any]]:
    body = json.dumps({name: getattr(job, name) for name in _IN_BODY})
    return [*_COLUMNS, "body"], [*(getattr(job, name) for name in _COLUMNS), body]


assert {field.name for field in fields(Job)} >= {*_COLUMNS, *_IN_BODY}
