"""``consisti2v serve --ray``: the same API as one Ray Serve application, with the models in replicas on a cluster.

The ingress holds the queue and the job store, which stays the only source of truth, on the machine of the command. Each
video is one streamed call of a replica. A lost replica or node loses no job: the call is made again on another replica.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from ..batch.node_bundle import FileSource, bundle_on_node
from ..batch.on_ray import connect, quiet_ray
from ..errors import UserError, first_line
from ..runtime.call_queue import CancelToken
from ..runtime.files.file_lock import locked
from ..runtime.files.replace_files import replacing
from .app import make_app
from .dispatcher import Dispatcher
from .logs import Log
from .metrics import Metrics
from .models import Model, open_models
from .options import ServerOptions
from .store import FRAMES, IMAGE, VIDEO, JobStore
from .worker import Worker
from .worker_process import WorkerEndedError

_TRIES = 3
_START_SECONDS = 600.0


class ModelReplica:
    """A process with loaded bundles, on a GPU of its own where the cluster has some.

    Args:
        start: as a worker process gets it.
        sources: model name -> the actor that serves its files to nodes without them.
    """

    def __init__(self, start: dict[str, Any], sources: dict[str, Any]) -> None:
        folders = {name: str(bundle_on_node(start["models"][name], source)) for name, source in sources.items()}
        self._send: Callable[[dict[str, Any]], None] = lambda message: None
        self._devices: dict[str, str] = {}

        def first(message: dict[str, Any]) -> None:
            self._devices = message.get("devices", self._devices)

        self._send = first
        self._worker = Worker(start | {"models": folders}, lambda message: self._send(message))

    async def describe(self) -> dict[str, str]:
        """What runs each model."""
        return self._devices

    async def run(self, order: dict[str, Any], images: list[bytes]) -> AsyncIterator[dict[str, Any]]:
        """Make the videos of an order: the messages of a worker, the last with the files of each job."""
        loop, token = asyncio.get_running_loop(), CancelToken()
        messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._send = lambda message: loop.call_soon_threadsafe(messages.put_nowait, message)  # type: ignore[assignment]
        with tempfile.TemporaryDirectory(prefix="consisti2v-") as work:
            folders = [Path(work) / str(number) for number in range(len(images))]
            for folder, image in zip(folders, images, strict=True):
                folder.mkdir()
                (folder / IMAGE).write_bytes(image)
            jobs = [job | {"folder": str(folder)} for job, folder in zip(order["jobs"], folders, strict=True)]
            running = asyncio.create_task(asyncio.to_thread(self._worker.run, order | {"jobs": jobs}, token))
            try:
                while (message := await messages.get())["say"] not in ("done", "failed", "cancelled"):
                    yield message
                if message["say"] == "done":
                    files = [{name: (folder / name).read_bytes() for name in (VIDEO, FRAMES)} for folder in folders]
                    message = message | {"files": files}
                yield message
            finally:
                # The caller went away or cancelled: the graph ends within one operation.
                token.cancel()
                await running


class RayWorker:
    """A replica as the dispatcher sees a worker process; see :class:`~.worker_process.WorkerProcess`."""

    pid: int | None = None

    def __init__(self, handle: Any, log: Log) -> None:
        self.device, self.titles = "ray", dict[str, str]()
        self.models, self.digests = dict[str, Model](), dict[str, str]()
        self._handle, self._log = handle, log
        self._order: dict[str, Any] = {}
        self._stream: Any = None
        self._tries = 0
        self._is_cancelled = False
        self._ended_for: tuple[str, str] | None = None

    @property
    def is_running(self) -> bool:
        return bool(self.titles)

    is_ready = is_running

    async def start(self, models: dict[str, Model]) -> None:
        """Wait until a replica is warm.

        Raises:
            WorkerEndedError: none could be started.
        """
        try:
            self.titles = dict(await self._handle.describe.remote())
            self.models, self.digests = models, {name: model.digest for name, model in models.items()}
        except Exception as error:  # classes of Ray's own
            raise WorkerEndedError("worker_died", f"no replica could be started ({first_line(error)}).") from None

    async def load(self, model: Model) -> None:
        """Replicas keep what they have loaded.

        Raises:
            UserError: always.
        """
        raise UserError("on a Ray cluster the weights stay as they are: start the server again with other ones.")

    def send(self, message: dict[str, Any]) -> None:
        """Begin an order, or cancel the one that runs."""
        if message["do"] == "run":
            self._order, self._tries, self._is_cancelled, self._ended_for = message, 0, False, None
            self._begin()
        elif self._stream is not None:
            self._is_cancelled = True
            self._stream.cancel()

    def _begin(self) -> None:
        self._stream = None
        try:
            images = [(Path(job["folder"]) / IMAGE).read_bytes() for job in self._order["jobs"]]
        except OSError as error:
            self._ended_for = (
                "storage",
                f"the uploaded image cannot be read any more ({error.strerror}): send it again.",
            )
            return
        self._tries += 1
        self._stream = self._handle.options(stream=True).run.remote(self._order, images)

    async def receive(self, deadline: float | None) -> dict[str, Any]:
        """The next message of the order; a lost replica's order begins again on another one.

        Raises:
            WorkerEndedError: replicas were lost three times, or the deadline has passed.
        """
        while True:
            if self._stream is None:
                return self._ended()
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                message: dict[str, Any] = await asyncio.wait_for(anext(self._stream), left)
            except asyncio.TimeoutError:
                self.kill("time_limit", "the video took longer than this server's time limit: take fewer steps.")
                deadline = None
            except asyncio.CancelledError:
                if not self._is_cancelled and self._ended_for is None:
                    raise
                return self._ended()
            except Exception as error:  # the replica is gone, or ended without a word
                if self._is_cancelled or self._ended_for is not None:
                    return self._ended()
                if self._tries >= _TRIES:
                    raise WorkerEndedError(
                        "worker_died",
                        f"{_TRIES} replicas ended while they made this video: try again, with a smaller size or fewer "
                        "clips.",
                    ) from None
                self._log.warning("a replica was lost, its job begins again", reason=first_line(error))
                self._begin()
            else:
                return self._stored(message) if message["say"] == "done" else message

    def _ended(self) -> dict[str, Any]:
        if self._ended_for is not None:
            raise WorkerEndedError(*self._ended_for)
        return {"say": "cancelled"}

    def _stored(self, message: dict[str, Any]) -> dict[str, Any]:
        """Write the files of each job, which came as bytes."""
        sizes = []
        try:
            for job, files in zip(self._order["jobs"], message.pop("files"), strict=True):
                targets = [Path(job["folder"]) / name for name in files]
                with replacing(targets) as places:
                    for place, content in zip(places, files.values(), strict=True):
                        place.write_bytes(content)
                sizes.append(sum(map(len, files.values())))
        except (OSError, UserError):
            text = "the server could not write the video: try again later, or have its disk cleared."
            return {"say": "failed", "code": "storage", "message": text}
        return message | {"bytes": sizes}

    def kill(self, code: str, message: str) -> None:
        """End the order for this reason."""
        self._ended_for = code, message
        if self._stream is not None:
            self._stream.cancel()

    async def close(self) -> None:
        """Nothing to end: Ray Serve ends the replicas."""

    def memory(self) -> int:
        return 0


class Ingress:
    """The queue, the job store and the API; one replica, on the machine of the command."""

    def __init__(self, options: ServerOptions, handle: Any, slots: int, log_format: str) -> None:
        log = Log(log_format)
        self._store = JobStore(options.data)
        workers = [RayWorker(handle, log) for _ in range(slots)]
        self._dispatcher = Dispatcher(options, open_models(options.bundles), self._store, Metrics(), log, workers)
        self._app = make_app(self._dispatcher, log)

    def __serve_build_asgi_app__(self) -> Any:
        async def application(scope: Any, receive: Any, send: Any) -> None:
            await self._serve(scope, receive, send)

        return application  # a function: a method would be taken for an application of ASGI 2

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        # Ray Serve begins and ends the application by ASGI's own messages.
        assert (await receive())["type"] == "lifespan.startup"
        starting = asyncio.create_task(self._dispatcher.start())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        starting.cancel()
        await self._dispatcher.stop()
        self._store.close()
        await send({"type": "lifespan.shutdown.complete"})


def serve_on_ray(
    options: ServerOptions, log_format: str, address: str, replicas: int | None, on_ready: Callable[[str], None]
) -> None:
    """Serve on a cluster until a signal ends it.

    Args:
        address: of the cluster, "auto", or "local" to start one here.
        replicas: most replicas; the cluster starts with one and adds others as jobs wait. None: one per GPU, or one.
        on_ready: told the address once a replica is warm.

    Raises:
        UserError: Ray is not installed or has no such cluster, or the server does not become ready.
    """
    quiet_ray()
    import ray
    from ray import serve
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    models = open_models(options.bundles)
    options.data.mkdir(parents=True, exist_ok=True)

    def refuse(holder: str) -> None:
        raise UserError(
            f'the folder "{options.data}" is used by another server ({holder}): choose another one with --data.'
        )

    ended = threading.Event()
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with locked(options.data / "lock", refuse):
            connect(ray, address)
            try:
                here = ray.get_runtime_context().get_node_id()
                node = next(node for node in ray.nodes() if node["NodeID"] == here)
                pinned = {name: 0.001 for name in node["Resources"] if name.startswith("node:") and "head" not in name}
                strategy = NodeAffinitySchedulingStrategy(here, soft=False)
                sources = {
                    name: ray.remote(FileSource)
                    .options(num_cpus=0, max_concurrency=8, scheduling_strategy=strategy)
                    .remote(str(model.folder), [])
                    for name, model in models.items()
                }
                gpus = int(ray.cluster_resources().get("GPU", 0))
                uses_gpu = gpus > 0 and options.devices[0] in ("auto", "cuda")
                slots = replicas or (gpus if uses_gpu else 1)
                start: dict[str, Any] = {name: getattr(options, name) for name in ("precision", "threads", "verify")}
                start |= {"previews": options.previews, "max_photo_pixels": options.max_image_pixels}
                start |= {"device": options.devices[0], "models": {n: str(m.folder) for n, m in models.items()}}
                replica = serve.deployment(
                    name="models",
                    max_ongoing_requests=1,
                    max_queued_requests=-1,
                    graceful_shutdown_timeout_s=options.drain,
                    ray_actor_options={"num_cpus": 1, "num_gpus": 1} if uses_gpu else {"num_cpus": 1},
                    autoscaling_config={"min_replicas": 1, "max_replicas": slots, "target_ongoing_requests": 1},
                )(ModelReplica)
                ingress = serve.deployment(
                    name="ingress",
                    num_replicas=1,
                    max_ongoing_requests=1000,
                    graceful_shutdown_timeout_s=options.drain + 10,
                    ray_actor_options={"num_cpus": 0, "resources": pinned},
                )(serve.ingress()(Ingress))
                for number in previous:  # after Ray, which sets handlers of its own
                    signal.signal(number, lambda *_: ended.set())
                serve.start(http_options={"host": options.host, "port": options.port})
                application = ingress.bind(options, replica.bind(start, sources), slots, log_format)
                serve.run(application, name="consisti2v", route_prefix="/")
                url = f"http://{options.host}:{options.port}/"
                _wait_until_ready(url, options, ended)
                if not ended.is_set():
                    on_ready(url)
                ended.wait()
            finally:
                if ray.is_initialized():
                    serve.shutdown()
                    ray.shutdown()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait_until_ready(url: str, options: ServerOptions, ended: threading.Event) -> None:
    from urllib.error import URLError
    from urllib.request import Request, urlopen

    key = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    deadline = time.monotonic() + _START_SECONDS
    while not ended.wait(0.3):
        try:
            with urlopen(Request(f"{url}ready", headers=key), timeout=5):
                return
        except (URLError, OSError):
            if time.monotonic() > deadline:
                raise UserError(
                    "no replica became ready: see the cluster's logs, and try 'consisti2v serve' without --ray."
                ) from None
