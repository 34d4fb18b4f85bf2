"""A server of its own for a measurement, and requests to it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from ...locations import ASSETS
from ...runtime.bundle.home import find_bundle
from ...runtime.child_process import neutral_place

IMAGE = ASSETS / "example.jpg"
_START_SECONDS = 300


@dataclass
class RunningServer:
    """``consisti2v serve`` as a process."""

    process: subprocess.Popen[bytes]
    address: str

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=120)

    def worker(self) -> psutil.Process | None:
        """The worker process, where one runs."""
        children: list[psutil.Process] = psutil.Process(self.process.pid).children()
        return children[0] if children else None

    def memory(self) -> int:
        """Bytes of the server's own resident memory, its worker left aside."""
        return int(psutil.Process(self.process.pid).memory_info().rss)


@contextmanager
def serving(data: Path, bundle: str, *options: str) -> Iterator[RunningServer]:
    """Start a server of a bundle in a folder, wait until it is warm, and end it afterwards; its log is ``server.log``
    there.
    """
    log = data / "server.log"
    command = [sys.executable, "-m", "consisti2v_rt", "serve", "--port", "0", "--data", str(data.absolute() / "jobs")]
    command += ["--bundle", str(find_bundle(bundle).absolute()), *options]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, **neutral_place())
    try:
        yield RunningServer(process, _address(process, log))
    finally:
        process.terminate()
        process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("serve: ready at "):
                return line.split()[-1].rstrip("/")
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {log.read_text(errors='replace')[-500:]}")


def frames_of(client: httpx.Client, video_id: str) -> NDArray[np.uint8]:
    """A finished video's frames, uint8 [frames, height, width, 3]."""
    answer = client.get(f"/v1/videos/{video_id}/content", params={"format": "png-zip"})
    answer.raise_for_status()
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        return np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in archive.namelist()])


def events_of(client: httpx.Client, video_id: str, last: str = "") -> Iterator[tuple[str, str, Any]]:
    """Id, name and data of a video's events, until its stream ends."""
    headers = {"Last-Event-ID": last} if last else {}
    with client.stream("GET", f"/v1/videos/{video_id}/events", headers=headers) as answer:
        answer.raise_for_status()
        yield from parse_events(answer.iter_lines())


def parse_events(lines: Iterable[str]) -> Iterator[tuple[str, str, Any]]:
    """Id, name and data of the server-sent events in a stream's lines."""
    entry: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if name in ("id", "event", "data"):
            entry[name] = value
        elif not line and "event" in entry:
            yield entry.get("id", ""), entry["event"], json.loads(entry["data"])
            entry = {}


def write_record(path: Path, record: dict[str, Any], lines: Sequence[str]) -> None:
    """Print what was found, and keep it as JSON."""
    print("\n".join(lines))
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
