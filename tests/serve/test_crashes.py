"""Servers that are killed, workers that die, limits that are reached: nothing is lost, and the server stays."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sqlite3
from dataclasses import asdict, replace

import psutil
import pytest
from PIL import Image

from consisti2v_rt.runtime.request.settings import GenerationSettings
from consisti2v_rt.serve.dispatcher import Dispatcher
from consisti2v_rt.serve.job import Job, new_id
from consisti2v_rt.serve.logs import Log
from consisti2v_rt.serve.metrics import Metrics
from consisti2v_rt.serve.models import open_models
from consisti2v_rt.serve.options import ServerOptions
from consisti2v_rt.serve.store import IMAGE, JobStore
from consisti2v_rt.serve.worker_process import WorkerEndedError, WorkerProcess, order_of

pytestmark = pytest.mark.rare


@pytest.fixture(scope="module")
def models():
    return open_models(["demo"])


@pytest.fixture
def make_job(models):
    """A job of the demo model, two steps unless told."""

    def make(**settings):
        chosen = GenerationSettings(**{"num_inference_steps": 2, "seed": 7} | settings)
        resolved, notices = models["demo"].resolve("zoom in", chosen)
        return Job(new_id(), "demo", "zoom in", asdict(resolved), resolved.total_frames, notices)

    return make


@pytest.fixture
def options(tmp_path):
    return ServerOptions(bundles=("demo",), data=tmp_path / "data", threads=1)


@pytest.fixture
def store(options):
    store = JobStore(options.data)
    yield store
    store.close()


def test_a_killed_server_goes_on_where_it_was(servers, ask, events, finished):
    """Finished videos stay, waiting jobs run, and the interrupted one runs once more, then fails with the cause. A
    server that is told to stop gives its job back, which is no interruption.
    """
    with (first := servers()).client as client:
        done = finished(client, ask(client).json()["id"])
        content = client.get(f"/v1/videos/{done['id']}/content").content
        long = ask(client, steps=150).json()["id"]
        waiting = ask(client, seed=9).json()["id"]
        with events(client, long) as stream:
            last = next(int(number) for number, name, _ in stream if name == "step")
    first.stop(signal.SIGKILL)

    for ending in (signal.SIGTERM, signal.SIGKILL):
        server = servers("--drain", "0", "--no-previews")
        with server.client as client:
            assert client.get(f"/v1/videos/{waiting}").json()["status"] == "queued"
            with events(client, long, **{"Last-Event-ID": str(last)}) as stream:
                number, data = next((int(number), data) for number, name, data in stream if name == "step")
            assert number > last and data["step"] >= 1 and "preview" not in data
            last = number
        assert server.stop(ending) == (128 + ending if ending == signal.SIGTERM else -ending)

    with servers(wait=False).client as client:
        failed = finished(client, long)
        assert failed["status"] == "failed" and failed["error"]["code"] == "interrupted"
        assert finished(client, waiting)["status"] == "completed"
        assert client.get(f"/v1/videos/{done['id']}/content").content == content


def test_a_worker_that_dies_fails_its_job_and_is_started_again(client, ask, events, finished, server):
    video = ask(client, steps=150).json()["id"]
    with events(client, video) as stream:
        next(name for _, name, _ in stream if name == "step")
        (worker,) = psutil.Process(server.process.pid).children()
        os.kill(worker.pid, signal.SIGBUS)
        *_, (_, name, data) = stream
    assert name == "failed" and data["error"]["code"] == "worker_died"
    assert "SIGBUS" in data["error"]["message"] and "try again" in data["error"]["message"]
    assert finished(client, ask(client).json()["id"])["status"] == "completed"
    assert 'consisti2v_failures_total{cause="worker_died"} 1.0' in client.get("/metrics").text


def test_a_worker_keeps_the_limits_of_time_memory_and_photos(options, models, store, make_job, photo):
    """One process, three orders: each limit ends its job, that of memory the process too."""

    async def outcome(worker, job, time_limit=60.0, image=None, memory_limit=None):
        store.folder(job.id).mkdir()
        (store.folder(job.id) / IMAGE).write_bytes(photo.read_bytes() if image is None else image)
        worker.send(order_of([job], store, time_limit))
        while True:
            message = await worker.receive(None)
            if message["say"] in ("failed", "done"):
                return message
            if memory_limit is not None:
                worker._options = replace(options, memory_limit=memory_limit)

    async def run():
        worker = WorkerProcess("cpu", replace(options, max_image_pixels=1_000_000), Log())
        await worker.start(models)
        message = await outcome(worker, make_job(num_inference_steps=200), time_limit=0.2)
        assert message["code"] == "time_limit" and "--time-limit" in message["message"]
        large = io.BytesIO()
        Image.new("RGB", (1001, 1000)).save(large, "PNG")
        message = await outcome(worker, make_job(), image=large.getvalue())
        assert message["code"] == "invalid_image" and "this server takes 1;" in message["message"]
        with pytest.raises(WorkerEndedError, match="--memory-limit") as ended:
            await outcome(worker, make_job(num_inference_steps=200), memory_limit=1)
        assert ended.value.code == "memory_limit" and not worker.is_running

    asyncio.run(run())


def test_a_full_disk_is_waited_for(options, models, store, make_job, monkeypatch):
    """What cannot be written is known to the server, and written when there is room again."""

    async def run():
        dispatcher = Dispatcher(options, models, store, Metrics(), Log())
        job = dispatcher.submit(make_job(), b"photo")

        def full(job):
            raise sqlite3.OperationalError("database or disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(store, "save", full)
            dispatcher.cancel(job)
            dispatcher._keeper.save_late()
            assert dispatcher.find(job.id).status == "cancelled"
            assert store.find(job.id).status == "queued"
        dispatcher._keeper.save_late()
        assert store.find(job.id).status == "cancelled"

    asyncio.run(run())


def test_finished_jobs_go_when_they_are_old_or_take_too_much(options, models, store, make_job):
    async def run():
        now = [make_job() for _ in range(4)]
        for age, job in enumerate(reversed(now)):
            job.end("completed")
            job.completed -= 100 * age
            store.add(job)
            store.folder(job.id).mkdir()
            (store.folder(job.id) / IMAGE).write_bytes(bytes(1000))
        (store.folder("video_stray")).mkdir()
        limits = replace(options, keep_seconds=250, keep_bytes=2500)
        dispatcher = Dispatcher(limits, models, store, Metrics(), Log())
        store.remove_strays()
        dispatcher._keeper.tidy(dispatcher.events.forget)
        # The oldest is older than 250 s; of the other three only two fit into 2500 bytes.
        assert {job.id for job in store.finished()} == {job.id for job in now[2:]}
        assert {folder.name for folder in store.folder("x").parent.iterdir()} == {job.id for job in now[2:]}

    asyncio.run(run())


def test_two_servers_do_not_share_a_folder(server, consisti2v_process):
    told = consisti2v_process("serve", "--port", "0", "--data", str(server.data)).refusal()
    assert "another server" in told and "--data" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--host", "0.0.0.0"), "--api-key-file"),
        (("--keep", "1day"), "24h or 10GB"),
        (("--device", "gpu"), "cuda:N"),
        (("--api-key", "short"), "at least 8"),
        (("--log-format", "xml"), "lines, json"),
        (("-b", "demo", "-b", "demo"), "two bundles are called demo"),
        (
            (
                "-b",
                "no-such-bundle",
            ),
            "does not exist",
        ),
    ],
)
def test_options_that_are_refused(consisti2v, tmp_path, arguments, told):
    assert told in consisti2v("serve", "--data", tmp_path / "data", *arguments).refusal()
    assert not (tmp_path / "data").exists()
