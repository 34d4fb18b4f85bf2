"""Rows on a Ray cluster: Ray Data maps them over actors that each hold a loaded model.

No shared file system is needed. One actor beside the command serves the photos and the bundle's files; a node keeps the
bundle under its digest; videos come back as bytes, and the command alone writes to the output folder.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import UserError, first_line
from ..runtime.files.replace_files import replacing
from ..runtime.install import install_hint
from .animator import Animator, Plan
from .node_bundle import FileSource, bundle_on_node
from .rows import BatchRow

_TRIES = 3
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_LOG_LEVEL": "ERROR",
}
"""Ray's own reports: to its makers, and to the terminal. Its log files keep the second kind."""
_DIED = (
    f"the worker of this row died {_TRIES} times, most often for lack of memory: run fewer --workers, or make "
    "the video smaller."
)


def run_on_ray(
    plan: Plan, rows: Sequence[BatchRow], folder: Path, workers: int | None, address: str
) -> Iterator[dict[str, Any]]:
    """Run rows on a cluster and give each row's line of the results as it ends, in any order.

    A row whose worker or node is lost runs again on another one, three times at most.

    Args:
        workers: actors, each with a model; None: as many as the cluster has GPUs or, without any, processors for.
        address: of the cluster; "auto" finds the one that this machine belongs to, "local" starts one here.

    Raises:
        UserError: Ray is not installed, or there is no such cluster.
    """
    quiet_ray()
    import ray
    import ray.data
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    connect(ray, address)
    try:
        context = ray.data.DataContext.get_current()
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context.enable_progress_bars = context.print_on_execution_start = False
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        source = (
            ray.remote(FileSource)
            .options(num_cpus=0, max_concurrency=8, scheduling_strategy=here)
            .remote(plan.bundle, [row.path for row in rows])
        )
        cores, gpus, most = _resources(ray, plan)
        yield from (row.result(row.fault) for row in rows if row.fault is not None)
        items = [{"row": pickle.dumps(row)} for row in rows if row.fault is None]
        if not items:
            return
        # A block for each row: its outcome arrives as soon as it has ended.
        outcomes = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _Actor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers or most, len(items))),
            fn_constructor_args=(plan, source),
            num_cpus=cores,
            num_gpus=gpus,
        )
        for outcome in outcomes.iter_rows():
            line, contents = pickle.loads(outcome["outcome"])
            with replacing([folder / name for name in contents]) as files:
                for file, content in zip(files, contents.values(), strict=True):
                    file.write_bytes(content)
            yield line
    finally:
        ray.shutdown()


def quiet_ray() -> None:
    """Import Ray with its own reports switched off.

    Raises:
        UserError: it is not installed.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise UserError(f"--ray needs Ray ({first_line(error)}): {install_hint('ray')}.") from None


def connect(ray: Any, address: str) -> None:
    """Connect to a cluster: by its address, "auto" for the one that this machine belongs to, "local" to start one.

    Raises:
        UserError: there is none, or it is the address of a Ray client.
    """
    if address.startswith("ray://"):
        raise UserError(
            f"--ray {address} is the address of a Ray client: run the command on a machine of the cluster with "
            "'--ray auto', for example through 'ray job submit'."
        )
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        host, _, port = address.rpartition(":")
        if host:  # Ray itself would wait for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        if address == "local":
            ray.init(address="local", include_dashboard=False, object_store_memory=256 * 2**20, **quiet)
        else:
            ray.init(address=address, **quiet)
    except Exception as error:  # OSError, ValueError, RuntimeError and classes of Ray's own
        raise UserError(
            f"the Ray cluster {address!r} cannot be used ({first_line(error)}): start one with 'ray start --head', or "
            "leave the address out to start one on this machine."
        ) from None


def _resources(ray: Any, plan: Plan) -> tuple[float, float, int]:
    """Processors and GPUs that one actor reserves, and how many actors the cluster holds."""
    total = ray.cluster_resources()
    if plan.engine.get("device") in ("auto", "cuda") and total.get("GPU", 0) >= 1:
        return 1, 1, int(total["GPU"])
    cores = plan.engine.get("threads") or min(
        (node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]), default=1
    )
    return cores, 0, max(1, int(total.get("CPU", 1) // cores))


class _Actor:
    """Holds a loaded model; a row in, its line and the bytes of its videos out."""

    def __init__(self, plan: Plan, source: Any) -> None:
        self._source = source
        self._fault: str | None = None
        try:
            self._animator = Animator(replace(plan, bundle=str(bundle_on_node(plan.bundle, source))))
        except UserError as error:
            self._fault = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"outcome": [pickle.dumps(self._outcome(pickle.loads(row))) for row in batch["row"]]}

    def _outcome(self, row: BatchRow) -> tuple[dict[str, Any], dict[str, bytes]]:
        if self._fault is not None:
            return row.result(self._fault), {}
        import ray

        tries, content = ray.get(self._source.begin.remote(row.key, row.path))
        if tries > _TRIES:
            return row.result(_DIED), {}
        with tempfile.TemporaryDirectory(prefix="consisti2v-") as folder:
            image, videos = Path(folder) / f"photo{Path(row.path).suffix}", Path(folder) / "videos"
            image.write_bytes(content)
            videos.mkdir()
            line = self._animator.run(replace(row, path=str(image)), videos)
            if line["error"] is not None:
                line["error"] = line["error"].replace(str(image), row.path)
            return line, {name: (videos / name).read_bytes() for name in line["files"]}
