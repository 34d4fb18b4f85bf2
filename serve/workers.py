"""The workers of a server: started, started again when they end, taken over to other weights between two jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ..errors import UserError
from .logs import Log
from .metrics import Metrics
from .models import Model
from .refusals import StoppingError
from .worker_process import WorkerEndedError

_RESTART_PAUSES = (0.0, 1.0, 5.0, 30.0)
"""Seconds before a worker that cannot be started is tried again."""


class Workers:
    """Every worker, and the models that each of them is to have.

    Args:
        models: by name; what a worker has otherwise, it goes over to before its next job.
        workers: as :class:`~.worker_process.WorkerProcess`.
        wake: wakes the workers that wait for a job.
    """

    def __init__(
        self, models: dict[str, Model], workers: Sequence[Any], metrics: Metrics, log: Log, wake: Callable[[], None]
    ) -> None:
        self.models, self.all = models, list(workers)
        self._metrics, self._log, self._wake = metrics, log, wake
        self._is_stopping = False
        self._ready: asyncio.Future[None] | None = None
        self._going_over: asyncio.Future[None] | None = None
        """Ends when every worker has the models."""
        self._former: Model | None = None

    async def ready(self) -> None:
        """Wait until all are warm; call it before :meth:`keep`.

        Raises:
            UserError: one refused its bundles, or cannot be started.
        """
        self._ready = asyncio.get_running_loop().create_future()
        await self._ready

    def stop(self) -> None:
        """Start none again, and refuse other weights from now on."""
        self._is_stopping = True
        self._give_up(StoppingError())

    async def keep(self, worker: Any, work: Callable[[Any], Awaitable[None]]) -> None:
        """One worker, until the server stops.

        Args:
            work: gives it its next job; returns soon where the worker :meth:`is_behind`.
        """
        failures = 0
        while not self._is_stopping:
            if not worker.is_ready:
                await asyncio.sleep(_RESTART_PAUSES[min(failures, len(_RESTART_PAUSES) - 1)])
                try:
                    self._metrics.worker_starts.inc()
                    await worker.start(dict(self.models))
                    failures = 0
                except (UserError, WorkerEndedError) as error:
                    failures += 1
                    if isinstance(error, UserError):
                        self._log.error("worker refused its bundles", device=worker.device, reason=str(error))
                    else:
                        error = UserError(f"the worker cannot be started: {error}")
                    self._give_up(error)
                    if self._ready is not None and not self._ready.done():
                        self._ready.set_exception(error)
                        return
                    continue
            await self._go_over(worker)
            if all(one.is_ready for one in self.all) and self._ready is not None and not self._ready.done():
                self._ready.set_result(None)
            if worker.is_running:
                await work(worker)

    def at_present(self, name: str) -> Model:
        """What a model's jobs run with until every worker has gone over."""
        former = self._former
        return former if former is not None and former.name == name else self.models[name]

    def is_behind(self, worker: Any) -> bool:
        """Whether it has to go over to other weights before its next job."""
        return any(worker.models.get(name) is not model for name, model in self.models.items())

    async def use(self, model: Model) -> None:
        """Have every worker go over to a model's other weights, each when its job has ended; one caller at a time.

        Raises:
            UserError: a worker cannot load them, or run them as the ones before. All go back to those.
            StoppingError: the server ends.
        """
        if self._is_stopping:
            raise StoppingError
        self._former = self.models[model.name]
        self.models[model.name] = model
        self._going_over = asyncio.get_running_loop().create_future()
        self._wake()
        try:
            await self._going_over
        except BaseException:
            self._give_up(None)
            raise
        finally:
            self._going_over = self._former = None

    async def _go_over(self, worker: Any) -> None:
        for model in list(self.models.values()):
            if worker.models.get(model.name) is model:
                continue
            try:
                await worker.load(model)
            except (UserError, WorkerEndedError) as error:
                refused = (
                    error
                    if isinstance(error, UserError)
                    else UserError(
                        f"a worker ended while it loaded the new weights ({error.code}): the ones before stay."
                    )
                )
                if not self._give_up(refused):
                    # The weights that it ran before: another process will load them.
                    self._log.error("worker cannot go back", device=worker.device, reason=str(error))
                    worker.kill("worker_died", "the worker could not go back to the weights that it had.")
                    await worker.close()
                return
        waiting = self._going_over
        if waiting is not None and not waiting.done() and not any(map(self._lacks, self.all)):
            waiting.set_result(None)

    def _lacks(self, worker: Any) -> bool:
        return not worker.is_ready or self.is_behind(worker)

    def _give_up(self, error: Exception | None) -> bool:
        """Go back to the weights before, where all were to go over; tells whether they were."""
        waiting, former = self._going_over, self._former
        if waiting is None or former is None:
            return False
        self.models[former.name] = former
        self._wake()
        if error is not None and not waiting.done():
            waiting.set_exception(error)
        return True
