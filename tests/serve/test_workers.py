"""Workers that go over to other weights: all of them, or none."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("prometheus_client")
pytest.importorskip("psutil")

from consisti2v_rt import UserError
from consisti2v_rt.serve.logs import Log
from consisti2v_rt.serve.metrics import Metrics
from consisti2v_rt.serve.models import Model, open_models
from consisti2v_rt.serve.refusals import StoppingError
from consisti2v_rt.serve.worker_process import WorkerEndedError
from consisti2v_rt.serve.workers import Workers


class Double:
    """A worker without a process: what it loads, and where that fails."""

    device = "cpu"

    def __init__(self, fails: dict[str, Exception] | None = None) -> None:
        self.models: dict[str, Model] = {}
        self.is_ready = False
        self.fails, self.loaded = fails or {}, list[str]()

    @property
    def is_running(self) -> bool:
        return self.is_ready

    async def start(self, models: dict[str, Model]) -> None:
        await asyncio.sleep(0)
        for model in models.values():
            if model.digest in self.fails:
                raise UserError("it cannot be started")
        self.models, self.is_ready = models, True
        self.loaded += [f"start {model.digest}" for model in models.values()]

    async def load(self, model: Model) -> None:
        await asyncio.sleep(0)
        if model.digest in self.fails:
            error = self.fails[model.digest]
            self.is_ready = not isinstance(error, WorkerEndedError)
            raise error
        self.models[model.name] = model
        self.loaded.append(model.digest)


def changed(*doubles: Double, stop: bool = False) -> Any:
    """Have workers go over from "old" to "new"; tells what the caller hears, and what stands afterwards."""

    async def run() -> Any:
        model = replace(open_models(["demo"])["demo"], digest="old")
        busy = asyncio.Event()

        async def work(worker: Double) -> None:
            if stop:
                await busy.wait()
            while not workers.is_behind(worker) and worker.is_running:
                await asyncio.sleep(0.001)

        workers = Workers({"demo": model}, doubles, Metrics(), Log(), lambda: None)
        ready = asyncio.create_task(workers.ready())
        tasks = [asyncio.create_task(workers.keep(double, work)) for double in doubles]
        await ready
        using = asyncio.create_task(workers.use(replace(model, digest="new")))
        await asyncio.sleep(0.01)
        if stop:
            assert workers.at_present("demo") is model and not using.done()
            workers.stop()
        heard = (await asyncio.gather(using, return_exceptions=True))[0]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return heard, workers.at_present("demo").digest, [double.models["demo"].digest for double in doubles]

    return asyncio.run(run())


def test_all_go_over():
    assert changed(Double(), Double()) == (None, "new", ["new", "new"])


@pytest.mark.parametrize("error", [UserError("no room"), WorkerEndedError("worker_died", "gone")])
def test_when_one_cannot_all_go_back(error):
    first, second = Double(), Double({"new": error})
    heard, present, loaded = changed(first, second)
    assert isinstance(heard, UserError) and (present, loaded) == ("old", ["old", "old"])
    assert ("no room" if isinstance(error, UserError) else "worker_died") in str(heard)
    assert second.loaded.count("start old") == (1 if isinstance(error, UserError) else 2)


def test_a_server_that_ends_lets_nobody_wait():
    heard, present, _ = changed(Double(), stop=True)
    assert isinstance(heard, StoppingError) and present == "old"
