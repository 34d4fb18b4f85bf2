"""The server as a Ray Serve application, on a real cluster on this machine: a lost replica loses no job."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from consisti2v_rt import ImageToVideo
from consisti2v_rt.locations import ASSETS
from consisti2v_rt.tests.serve.conftest import Server, start_server

pytest.importorskip("ray", reason="Ray is not installed: pip install 'consisti2v-rt[ray]'")
pytestmark = pytest.mark.rare
BUNDLE = Path(__file__).parents[1] / "data" / "untrained_bundle"


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = tmp_path_factory.mktemp("ray") / "data"
    options = ("--ray", "--bundle", str(BUNDLE), "--threads", "1", "--device", "cpu", "--port", str(port))
    server = start_server(data, *options)
    yield server
    assert server.stop() in (0, 128 + signal.SIGTERM)


def submit(client: Any, steps: int, seed: int) -> str:
    photo = {"input_reference": ("photo.jpg", (ASSETS / "example.jpg").read_bytes(), "image/jpeg")}
    fields = {"prompt": "a cat", "num_inference_steps": str(steps), "seed": str(seed), "guidance_scale": "1"}
    answer = client.post("/v1/videos", data=fields, files=photo)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def wait(client: Any, video: str, *statuses: str) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found: dict[str, Any] = client.get(f"/v1/videos/{video}").json()
        if found["status"] in statuses:
            return found
        time.sleep(0.1)
    raise AssertionError(found)


def replica() -> psutil.Process:
    for process in psutil.process_iter(["cmdline"]):
        name = " ".join(process.info["cmdline"] or ())
        if "ServeReplica" in name and "models" in name:
            return process
    raise AssertionError("no replica is running")


def test_a_lost_replica_loses_no_job_and_changes_no_video(on_ray: Server, tmp_path: Path) -> None:
    with on_ray.client as client:
        jobs = [submit(client, 8, seed) for seed in (1, 2)]
        deadline = time.monotonic() + 120
        while client.get(f"/v1/videos/{jobs[0]}").json()["step"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(replica().pid, signal.SIGKILL)
        ended = [wait(client, job, "completed", "failed") for job in jobs]
        assert [job["status"] for job in ended] == ["completed"] * 2, ended
        gif = client.get(f"/v1/videos/{jobs[0]}/content?format=gif").content
        listed = client.get("/v1/videos").json()["data"]
        assert sorted(job["id"] for job in listed) == sorted(jobs)
    with ImageToVideo.from_bundle(BUNDLE, device="cpu", threads=1) as animate:
        expected = animate(ASSETS / "example.jpg", "a cat", num_inference_steps=8, seed=1, guidance_scale=1.0)
        expected.save(tmp_path / "expected.gif")
    assert gif == (tmp_path / "expected.gif").read_bytes()


def test_a_job_is_cancelled_within_a_step(on_ray: Server) -> None:
    with on_ray.client as client:
        job = submit(client, 50, 3)
        wait(client, job, "in_progress")
        client.post(f"/v1/videos/{job}/cancel")
        assert wait(client, job, "cancelled", "completed")["status"] == "cancelled"
        assert wait(client, submit(client, 1, 4), "completed", "failed")["status"] == "completed"
