"""One server of the demo bundle for all tests of this folder, as its own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

from consisti2v_rt.benchmarks.serving.running import parse_events  # noqa: E402 - needs httpx

START_SECONDS = 240


@dataclass
class Server:
    """A running ``consisti2v serve``."""

    process: subprocess.Popen[str]
    address: str
    data: Path
    log: Path

    @property
    def client(self) -> Any:
        return httpx.Client(base_url=self.address, timeout=60)

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)


def start_server(data: Path, *options: str, wait: bool = True, **environment: str) -> Server:
    """Start the command at a free port, and wait until it says that it is ready."""
    log = data.parent / f"{data.name}.{time.monotonic_ns()}.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "consisti2v_rt", "serve", "--port", "0", "--data", str(data), *options],
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=data.parent,
            env=os.environ | {"COLUMNS": "300"} | environment,
        )
    wanted = "ready at " if wait else "http://"
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        lines = [line for line in log.read_text().splitlines() if line.startswith("serve: ") and wanted in line]
        if lines:
            address = next(word for word in lines[0].split() if word.startswith("http"))
            return Server(process, address.rstrip("/"), data, log)
        if process.poll() is not None:
            break
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"the server did not start: {log.read_text()}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that tests share: previews on, batches of up to 3, no key."""
    running = start_server(tmp_path_factory.mktemp("serve") / "data", "--max-batch", "3", "--max-queue", "8")
    yield running
    assert running.stop() == 128 + signal.SIGTERM


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with server.client as client:
        yield client


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers of a test's own, in its folder ``data``; all are ended with it."""
    started: list[Server] = []

    def start(*options: str, **more: Any) -> Server:
        started.append(start_server(tmp_path / "data", *options, **more))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()


@contextmanager
def _events(client: Any, video_id: str, **headers: str) -> Iterator[Iterator[tuple[str, str, Any]]]:
    with client.stream("GET", f"/v1/videos/{video_id}/events", headers=headers) as response:
        assert response.status_code == 200
        yield parse_events(response.iter_lines())


@pytest.fixture
def events() -> Callable[..., Any]:
    """A context: (id, event, data) of a video's stream, as they come."""
    return _events


@pytest.fixture
def ask(photo: Path) -> Callable[..., Any]:
    """Ask a client for a video of the example photo; few steps unless more are named."""

    def send(client: Any, path: str = "/v1/videos", *, headers: dict[str, str] | None = None, **fields: Any) -> Any:
        fields = {"steps": "2", "prompt": "zoom in", "seed": "7"} | {k: str(v) for k, v in fields.items()}
        return client.post(path, data=fields, files={"input_reference": photo.read_bytes()}, headers=headers)

    return send


@pytest.fixture
def finished(events: Callable[..., Any]) -> Callable[..., Any]:
    """Wait for a video's end; gives its video object."""

    def wait(client: Any, video_id: str) -> Any:
        with events(client, video_id) as stream:
            for _, name, data in stream:
                if name in ("completed", "failed", "cancelled", "deleted"):
                    return data
        raise AssertionError("the stream ended without a result")

    return wait
