"""A worker process as the server sees it: started, spoken to, watched, ended."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psutil

from ..errors import UserError
from ..runtime.child_process import answer_in, neutral_place
from .job import Job
from .logs import Log
from .models import Model
from .options import ServerOptions
from .store import JobStore

_LONGEST_LINE = 1 << 24
"""Bytes of a message: a batch's previews."""
_WATCH_SECONDS = 0.2


class WorkerEndedError(Exception):
    """The process ended: a code and a sentence for the jobs that it had."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def order_of(jobs: Sequence[Job], store: JobStore, time_limit: float) -> dict[str, Any]:
    """What a worker is told, to make the videos of jobs of one ``batch_key``; `time_limit` is of one, in seconds."""
    return {
        "do": "run",
        "model": jobs[0].model,
        "settings": jobs[0].settings,
        "time_limit": time_limit * len(jobs) or None,
        "jobs": [
            {
                "folder": str(store.folder(job.id)),
                "prompt": job.prompt,
                "negative_prompt": job.settings["negative_prompt"],
                "seed": job.settings["seed"],
            }
            for job in jobs
        ],
    }


class WorkerProcess:
    """The process of one device.

    Args:
        device: auto, cpu, openvino, cuda or cuda:N.
    """

    def __init__(self, device: str, options: ServerOptions, log: Log) -> None:
        self.device, self._options, self._log = device, options, log
        self.titles: dict[str, str] = {}
        """What runs each model, once it is ready."""
        self.models: dict[str, Model] = {}
        """What it has loaded."""
        self.digests: dict[str, str] = {}
        """Of the bundles, as it read them."""
        self.peak_bytes = 0
        """Largest resident memory that was seen of this process."""
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._said: deque[str] = deque(maxlen=5)
        self._ended_for: tuple[str, str] | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def is_ready(self) -> bool:
        return self.is_running and bool(self.titles)

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self, models: dict[str, Model]) -> None:
        """Start the process and wait until it has loaded and warmed every model's bundle.

        Raises:
            UserError: a bundle cannot be loaded as asked.
            WorkerEndedError: the process ended.
        """
        place = neutral_place()
        device, _, index = self.device.partition(":")
        if index:
            place["env"]["CUDA_VISIBLE_DEVICES"] = index
        self.titles, self._ended_for, self.peak_bytes = {}, None, 0
        self.models, self.digests = {}, {}
        self._said.clear()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "consisti2v_rt.serve.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            # A Ctrl-C reaches the server alone, which then ends the worker.
            start_new_session=True,
            **place,
        )
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._watch(self._process.pid))]
        options = self._options
        start = {
            "models": {name: str(model.folder) for name, model in models.items()},
            "device": device,
            "precision": options.precision,
            "threads": options.threads,
            "verify": options.verify,
            "previews": options.previews,
            "max_photo_pixels": options.max_image_pixels,
        }
        self.send(start)
        while True:
            message = await self.receive(None)
            if message["say"] == "refused":
                await self._join()
                raise UserError(message["message"])
            if message["say"] == "loaded":
                self._loaded(models[message["model"]], message)
            if message["say"] == "ready":
                self.titles = message["devices"]
                return

    async def load(self, model: Model) -> None:
        """Go over to other weights of a model; call it between two orders.

        Raises:
            UserError: they cannot be loaded, or not run as the ones before; the process keeps those.
            WorkerEndedError: the process ended.
        """
        self.send({"do": "load", "model": model.name, "folder": str(model.folder), "digest": model.digest})
        while (message := await self.receive(None))["say"] != "loaded":
            if message["say"] == "refused":
                raise UserError(message["message"])
        self._loaded(model, message)

    def _loaded(self, model: Model, message: dict[str, Any]) -> None:
        # The folder may hold another bundle by now than when the server read it: the record is to be true.
        digest, seconds = message["digest"], message["seconds"]
        self.models[model.name], self.digests[model.name] = model, digest
        self._log.info("loaded", model=model.name, device=self.device, digest=digest, seconds=seconds)

    def send(self, message: dict[str, Any]) -> None:
        """Tell the process something; of one that has ended, :meth:`receive` tells."""
        assert self._process is not None and self._process.stdin is not None
        with suppress(OSError, RuntimeError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def receive(self, deadline: float | None) -> dict[str, Any]:
        """The next message.

        Args:
            deadline: by ``time.monotonic``; after it the process is killed.

        Raises:
            WorkerEndedError: there will be none.
        """
        assert self._process is not None and self._process.stdout is not None
        while True:
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                line = await asyncio.wait_for(self._process.stdout.readline(), left)
            except asyncio.TimeoutError:
                deadline = None
                self.kill(
                    "time_limit",
                    "the video took longer than this server's time limit, and its worker did not stop: take fewer "
                    "steps, or have the server started with a larger --time-limit.",
                )
                continue
            except ValueError:  # longer than any message
                self.kill("worker_died", "the worker wrote what is no message: try again.")
                continue
            if not line:
                raise await self._end()
            answer = answer_in(line.decode(errors="replace"))
            if answer is not None:
                return answer

    def kill(self, code: str, message: str) -> None:
        """End the process now, for this reason."""
        if self.is_running:
            self._ended_for = self._ended_for or (code, message)
            assert self._process is not None
            with suppress(ProcessLookupError):
                self._process.kill()

    async def close(self) -> None:
        """End the process: its standard input ends, and it goes at once."""
        if self._process is not None and self.is_running:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                await asyncio.wait_for(self._process.wait(), 2)
            except asyncio.TimeoutError:
                self.kill("interrupted", "the server was stopped.")
        await self._join()

    def memory(self) -> int:
        """Bytes of resident memory; 0 where the process is gone."""
        if not self.is_running or self.pid is None:
            return 0
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return 0

    async def _end(self) -> WorkerEndedError:
        await self._join()
        assert self._process is not None
        code = self._process.returncode or 0
        if self._ended_for is not None:
            return WorkerEndedError(*self._ended_for)
        name = f"code {code}"
        if code < 0:
            with suppress(ValueError):
                name = f"signal {signal.Signals(-code).name}"
        self._log.error("worker ended", device=self.device, cause=name, said=" | ".join(self._said))
        if code == -getattr(signal, "SIGKILL", 9):
            return WorkerEndedError(
                "worker_killed",
                "the worker process was killed from outside, most likely because the machine ran out of memory: try "
                "again, with a smaller size or fewer clips if it happens again.",
            )
        return WorkerEndedError(
            "worker_died",
            f"the worker process ended ({name}) while it made this video: a new one takes its place; try again, and "
            "with another photo or other settings if it happens again.",
        )

    async def _join(self) -> None:
        """Wait for the process, which has ended or is about to, and for those who watch it."""
        assert self._process is not None
        await self._process.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.titles = {}

    async def _listen(self) -> None:
        """What the process writes to its error stream goes to the log."""
        assert self._process is not None and self._process.stderr is not None
        while line := await self._process.stderr.readline():
            text = line.decode(errors="replace").rstrip()
            if text:
                self._said.append(text)
                self._log.warning("worker", device=self.device, said=text)

    async def _watch(self, pid: int) -> None:
        """Kill the process when it takes more memory than it may."""
        while True:
            limit = self._options.memory_limit
            used = self.memory()
            self.peak_bytes = max(self.peak_bytes, used)
            if limit is not None and used > limit:
                self.kill(
                    "memory_limit",
                    f"the video took more than the {limit / 2**30:.3g} GiB of memory that this server allows: take a "
                    "smaller size or fewer clips, or have the server started with a larger --memory-limit.",
                )
                return
            await asyncio.sleep(_WATCH_SECONDS)
