"""Rows on a real Ray cluster on this machine: what is lost runs again, and no row runs to its end twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from consisti2v_rt.batch.animator import Animator, Plan
from consisti2v_rt.batch.node_bundle import FileSource, bundle_on_node
from consisti2v_rt.batch.on_ray import run_on_ray
from consisti2v_rt.batch.rows import BatchRow, read_rows
from consisti2v_rt.errors import UserError
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.request.settings import GenerationSettings

from .conftest import BUNDLE, Listing

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'consisti2v-rt[ray]'")
pytestmark = pytest.mark.rare

PLAN = Plan(str(BUNDLE), {"threads": 1, "device": "cpu"}, ".png")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and one more node, a processor each."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False}, connect=False)
    cluster.add_node(**node)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def rows(make_listing: Listing) -> list[BatchRow]:
    listing = make_listing(*[{"seed": seed} for seed in range(5)], {"image": "missing.png"})
    return read_rows(listing, None, GenerationSettings(), 10)[0]


def test_results_are_those_of_one_process(cluster: Any, rows: list[BatchRow], tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    animator = Animator(PLAN)
    expected = {row.key: animator.run(row, here) for row in rows[:2]}
    lines = list(run_on_ray(PLAN, [*rows[:2], rows[-1]], there, 2, cluster.address))
    assert len(lines) == 3
    assert [line["line"] for line in lines if line["error"]] == [rows[-1].line]
    for line in lines:
        if line["error"] is None:
            assert {"files": line["files"], "settings": line["settings"]}.items() <= expected[line["key"]].items()
            for name in line["files"]:
                assert (there / name).read_bytes() == (here / name).read_bytes()


def test_a_killed_actor_and_a_lost_node_lose_no_row(cluster: Any, rows: list[BatchRow], tmp_path: Path) -> None:
    added = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    running = run_on_ray(PLAN, rows[:5], tmp_path, 3, cluster.address)
    lines = [next(running)]
    for process in psutil.process_iter(["cmdline"]):
        if "MapWorker" in " ".join(process.info["cmdline"] or ()):
            os.kill(process.pid, signal.SIGKILL)
            break
    else:
        raise AssertionError("no actor is running")
    cluster.remove_node(added, allow_graceful=False)
    lines += running
    assert sorted(line["line"] for line in lines) == [1, 2, 3, 4, 5]
    assert all(line["error"] is None for line in lines), lines
    assert all((tmp_path / name).is_file() for line in lines for name in line["files"])


def test_a_node_without_the_bundle_copies_it_once(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        # As in a batch: Ray may take a node that another test has removed for alive.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        source = ray.remote(FileSource).options(num_cpus=0, scheduling_strategy=here).remote(str(BUNDLE), [])
        placed = bundle_on_node("not-here", source)
        assert tmp_path in placed.parents
        assert Bundle.open(placed).digest == Bundle.open(BUNDLE).digest
        first = (placed / "bundle.json").stat().st_ino
        assert bundle_on_node("not-here", source) == placed
        assert (placed / "bundle.json").stat().st_ino == first
        graph = placed / "unet" / "unet.onnx"
        graph.write_bytes(graph.read_bytes()[:-1])
        bundle_on_node("not-here", source)
        Bundle.open(placed)
        assert [path.name for path in placed.parent.iterdir()] == [placed.name]
    finally:
        ray.shutdown()


def test_no_cluster_is_one_sentence(rows: list[BatchRow], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="start one with 'ray start --head'"):
        list(run_on_ray(PLAN, rows[:1], tmp_path, 1, "127.0.0.1:1"))
