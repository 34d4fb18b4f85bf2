"""The queue: jobs wait, run in worker processes, and end; each state is on disk before anybody is told of it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from .events import Events, final_data
from .job import Job
from .keeper import Keeper
from .logs import Log
from .loras import Loras
from .metrics import Metrics
from .models import Model
from .options import ServerOptions
from .pace import Pace
from .refusals import QueueFullError, StoppingError
from .store import IMAGE, JobStore
from .worker_process import WorkerEndedError, WorkerProcess, order_of
from .workers import Workers

CANCEL_SECONDS = 10.0
"""A worker that has not stopped by then is killed."""
_MOST_INTERRUPTIONS = 2
_TIDY_SECONDS = 60.0


class Dispatcher:
    """Everything between the API and the workers. It belongs to one event loop."""

    def __init__(
        self,
        options: ServerOptions,
        models: dict[str, Model],
        store: JobStore,
        metrics: Metrics,
        log: Log,
        workers: Sequence[Any] | None = None,
    ) -> None:
        self.options, self.metrics = options, metrics
        self.events, self.store, self._log, self._pace = Events(), store, log, Pace()
        self._queue: deque[Job] = deque()
        self._running: dict[WorkerProcess, list[Job]] = {}
        self._active: dict[str, Job] = {}
        """Jobs that have not ended."""
        self._keeper = Keeper(store, options, log)
        self._arrived = asyncio.Event()
        self._is_stopping = False
        workers = workers or [WorkerProcess(device, options, log) for device in options.devices]
        self._workers = Workers(dict(models), workers, metrics, log, self._arrived.set)
        self.loras = Loras(options, store, self._workers, log)
        self._tasks: list[asyncio.Task[None]] = []
        metrics.queue_capacity.set(options.max_queue)

    # -- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up what an earlier server left, start the workers, and wait until all of them are warm.

        Raises:
            UserError: a worker refused its bundles, or LoRAs that were active cannot be merged any more.
        """
        self.store.remove_strays()
        for job in self.store.unfinished():
            self._recover(job)
        self._keeper.tidy(self.events.forget)
        await self.loras.restore()
        ready = asyncio.create_task(self._workers.ready())
        self._tasks = [asyncio.create_task(self._workers.keep(worker, self._work)) for worker in self._workers.all]
        self._tasks.append(asyncio.create_task(self._tidy_often()))
        await ready

    async def stop(self) -> None:
        """Let running jobs end within the time for it; what is not done by then goes back to the queue."""
        self._is_stopping = True
        self._workers.stop()
        self._arrived.set()
        waiting = [task for task in self._tasks[:-1] if not task.done()]
        if waiting and any(self._running.values()):
            await asyncio.wait(waiting, timeout=self.options.drain)
            for worker, jobs in self._running.items():
                if jobs:
                    worker.send({"do": "cancel"})
            await asyncio.wait(waiting, timeout=CANCEL_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self._workers.all:
            if worker.pid is not None:
                await worker.close()
        for jobs in self._running.values():
            for job in jobs:
                self._give_back(job)
        self._keeper.save_late()
        self.events.close()

    def _recover(self, job: Job) -> None:
        """A job that an earlier server left: it waits again, unless it was cancelled or was interrupted twice."""
        self._active[job.id] = job
        if job.status == "cancelling":
            self._finish(job, "cancelled")
            return
        if job.status == "in_progress":
            job.interruptions += 1
        if job.interruptions >= _MOST_INTERRUPTIONS:
            self._finish(
                job,
                "failed",
                "interrupted",
                "the server was ended twice while it made this video: send the request again, and with another photo "
                "or a smaller size if the server ends again.",
            )
        else:
            job.status, job.started = "queued", None
            self._keeper.save(job)
            self._queue.append(job)

    # -- what the API asks -----------------------------------------------------------------------------------------

    @property
    def models(self) -> dict[str, Model]:
        """As jobs that start from now on get them."""
        return self._workers.models

    @property
    def is_ready(self) -> bool:
        return not self._is_stopping and any(worker.is_ready for worker in self._workers.all)

    def submit(self, job: Job, image: bytes) -> Job:
        """Queue a job; a second request with the same key gets the first one's.

        Raises:
            QueueFullError: too many jobs wait.
            StoppingError: the server ends.
            OSError, sqlite3.Error: the disk is full.
        """
        if job.request_key is not None:
            known = self.store.of_request(job.request_key)
            if known is not None:
                return self._active.get(known.id) or self._keeper.find(known.id) or known
        self._check_room()
        folder = self.store.folder(job.id)
        try:
            folder.mkdir()
            # A few hundred microseconds for a photo; a thread takes as long to start.
            (folder / IMAGE).write_bytes(image)
            self._check_room()
            self.store.add(job)
        except BaseException:
            self.store.remove(job.id)
            raise
        self._active[job.id] = job
        self._queue.append(job)
        self._arrived.set()
        self._count()
        return job

    def find(self, job_id: str) -> Job | None:
        job = self._active.get(job_id) or self._keeper.find(job_id) or self.store.find(job_id)
        return None if job is None or job.is_deleted else job

    def shown(self, job: Job) -> dict[str, Any]:
        """The video object."""
        position = self._queue.index(job) if job in self._queue else None
        return job.shown(self.options.keep_seconds, position, self._eta(job, position))

    def page(self, after: Job | None, limit: int, *, newest_first: bool) -> list[Job]:
        jobs = self.store.page(None if after is None else after.number, limit, newest_first=newest_first)
        present = (self._active.get(job.id) or self._keeper.find(job.id) or job for job in jobs)
        return [job for job in present if not job.is_deleted]

    def cancel(self, job: Job) -> None:
        """Cancel a job: at once where it waits, within one operation of the graph where it runs."""
        if job.is_finished or job.status == "cancelling":
            return
        if job in self._queue:
            self._queue.remove(job)
            self._finish(job, "cancelled")
            return
        job.status = "cancelling"
        self._keeper.save(job)
        self.events.add(job, "cancelling", {"id": job.id})
        for worker, jobs in self._running.items():
            if job in jobs:
                worker.send({"do": "cancel"})
                asyncio.get_running_loop().call_later(CANCEL_SECONDS, self._kill_stuck, worker, job)

    def delete(self, job: Job) -> None:
        """Cancel a job that has not ended, and forget it."""
        self.cancel(job)
        if job.is_finished:
            self._keeper.remove(job)
            self.events.forget(job.id)
        else:
            job.is_deleted = True
            self.events.touch(job.id)

    def state(self) -> dict[str, Any]:
        """Queue and workers, for ``/v1/capabilities``."""
        return {
            "queue": {
                "length": len(self._queue),
                "running": sum(map(len, self._running.values())),
                "capacity": self.options.max_queue,
            },
            "workers": [
                {"device": w.device, "ready": w.is_ready, "models": w.titles, "memory_bytes": w.memory()}
                for w in self._workers.all
            ],
        }

    def read_metrics(self) -> bytes:
        self._count()
        for index, worker in enumerate(self._workers.all):
            self.metrics.worker_memory.labels(str(index)).set(worker.memory())
        return self.metrics.text()

    # -- running ---------------------------------------------------------------------------------------------------

    async def _work(self, worker: WorkerProcess) -> None:
        jobs = await self._next(worker)
        if jobs:
            await self._run(worker, jobs)

    async def _next(self, worker: WorkerProcess) -> list[Job]:
        """The oldest job and those that fit it; none when the server stops, the worker has ended or changes weights."""
        while True:
            if self._is_stopping or not worker.is_running or self._workers.is_behind(worker):
                return []
            if self._queue:
                break
            self._arrived.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), 0.5)
        first = self._queue.popleft()
        jobs = [first]
        if self.options.max_batch > 1 and not first.alone:
            fitting = [job for job in self._queue if not job.alone and job.batch_key == first.batch_key]
            jobs += fitting[: self.options.max_batch - 1]
            for job in jobs[1:]:
                self._queue.remove(job)
        return jobs

    async def _run(self, worker: WorkerProcess, jobs: list[Job]) -> None:
        self._running[worker] = jobs
        for job in jobs:
            job.status, job.started, job.step, job.decoding = "in_progress", time.time(), 0, False
            job.runs += 1
            job.weights = worker.digests[job.model]
            job.loras = [use._asdict() for use in worker.models[job.model].loras]
            self._keeper.save(job)
            self.metrics.in_queue.observe(time.monotonic() - job.queued_since)
            self.events.add(job, "started", {"id": job.id, "steps": job.steps, "device": worker.titles.get(job.model)})
        self._count()
        self.events.touch()
        try:
            worker.send(order_of(jobs, self.store, self.options.time_limit))
            await self._follow(worker, jobs)
        finally:
            left = [job for job in jobs if not job.is_finished and job.id in self._active and job not in self._queue]
            self._running[worker] = left
            self._count()

    async def _follow(self, worker: WorkerProcess, jobs: list[Job]) -> None:
        """Hear a run to its end."""
        begun = stepped = time.monotonic()
        # The worker keeps the limit itself; this one is for a photo or a file that does not end.
        limit = self.options.time_limit
        deadline = begun + limit * len(jobs) + CANCEL_SECONDS if limit else None
        while True:
            try:
                message = await worker.receive(deadline)
            except WorkerEndedError as error:
                self._failed(jobs, error.code, str(error))
                return
            now, say = time.monotonic(), message["say"]
            if say == "step":
                took = (now - stepped) / len(jobs)
                stepped = now
                self.metrics.step.observe(took)
                previews = message.get("previews") or [None] * len(jobs)
                for job, preview in zip(jobs, previews, strict=True):
                    if message["step"] > 1:  # the first one waits for photo and prompt
                        self._pace.step_took(job, took)
                    job.step = message["step"]
                    eta = self._eta(job, None)
                    data: dict[str, Any] = {"step": job.step, "steps": job.steps, "progress": job.progress}
                    data |= {"eta_seconds": None if eta is None else round(eta, 1)}
                    self.events.add(job, "step", data, preview)
            elif say == "decoding":
                for job in jobs:
                    job.decoding = True
                    self.events.add(job, "decoding", {"id": job.id})
            elif say == "done":
                self._done(jobs, message, now - begun)
                return
            elif say == "failed":
                self._failed(jobs, message["code"], message["message"])
                return
            elif say == "cancelled":
                for job in reversed(jobs):
                    if job.status == "cancelling":
                        self._finish(job, "cancelled")
                    else:
                        self._give_back(job)
                return

    def _done(self, jobs: list[Job], message: dict[str, Any], seconds: float) -> None:
        steps = jobs[0].steps * len(jobs) * (self._pace.step_seconds(jobs[0]) or 0.0)
        for stage, took in message["timings"].items():
            self.metrics.stage.labels(stage).observe(took)
        for job in jobs:
            self._pace.rest_took(job, max(0.0, seconds - steps) / len(jobs))
            job.timings = {stage: round(took, 6) for stage, took in message["timings"].items()}
            if job.status == "cancelling":
                self._finish(job, "cancelled")
            else:
                job.step = job.steps
                self._finish(job, "completed")

    def _failed(self, jobs: list[Job], code: str, message: str) -> None:
        """A single job has failed; of a batch nobody knows whose fault it was, so each runs alone."""
        for job in reversed(jobs):
            if job.status == "cancelling":
                self._finish(job, "cancelled")
            elif len(jobs) > 1:
                job.alone = True
                self._give_back(job)
            else:
                self._finish(job, "failed", code, message)

    def _give_back(self, job: Job) -> None:
        """To the front of the queue: its run was ended for another reason than itself."""
        job.status, job.started, job.step, job.decoding = "queued", None, 0, False
        self._queue.appendleft(job)
        self._keeper.save(job)
        self._arrived.set()

    def _finish(self, job: Job, status: str, code: str | None = None, message: str | None = None) -> None:
        job.end(status, code, message)
        if status == "completed":
            self.metrics.videos.inc()
        elif status == "failed":
            self.metrics.failures.labels(code).inc()
        else:
            self.metrics.cancelled.inc()
        seconds = None if job.started is None else time.time() - job.started
        self._log.info(status, job=job.id, model=job.model, seconds=seconds, cause=code, reason=message)
        self._keeper.save(job)
        self._active.pop(job.id, None)
        if job.is_deleted:
            self._keeper.remove(job)
            self.events.forget(job.id)
        else:
            self.events.add(job, status, final_data(job, self.shown(job)))
        self.events.touch()

    def _kill_stuck(self, worker: WorkerProcess, job: Job) -> None:
        if not job.is_finished and job in self._running.get(worker, []):
            worker.kill("cancelled", "the worker did not stop in time and was ended.")

    # -- beside it -------------------------------------------------------------------------------------------------

    def _check_room(self) -> None:
        if self._is_stopping:
            raise StoppingError
        if len(self._queue) >= self.options.max_queue:
            self.metrics.refused.inc()
            first = self._eta(self._queue[0], 0) if self._queue else None
            raise QueueFullError(max(1, round(5 if first is None else min(first, 600))))

    def _eta(self, job: Job, position: int | None) -> float | None:
        """Seconds until a job is done, where jobs of its kind have run."""
        own = self._pace.left(job)
        if own is None or job.is_finished:
            return None
        if position is None:
            return own
        ahead = [one for jobs in self._running.values() for one in jobs]
        ahead += [one for one, _ in zip(self._queue, range(position), strict=False)]
        return own + sum(self._pace.left(one) or 0.0 for one in ahead) / max(len(self._workers.all), 1)

    async def _tidy_often(self) -> None:
        tidied = time.monotonic()
        while True:
            await asyncio.sleep(1)
            self._keeper.save_late()
            if time.monotonic() - tidied >= _TIDY_SECONDS:
                tidied = time.monotonic()
                self._keeper.tidy(self.events.forget)
                self.loras.tidy()

    def _count(self) -> None:
        self.metrics.queue_length.set(len(self._queue))
        self.metrics.running.set(sum(map(len, self._running.values())))
