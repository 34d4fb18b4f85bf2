"""``python -m consisti2v_rt.benchmarks.serving.load``: many clients at once, and faults among them.

Clients ask for small videos of mixed kinds: they poll, follow events, drop connections and return, cancel, delete.
Meanwhile the worker is killed, and the disk is full once. Each request that is not cancelled must end as a video whose
frames are the library's own; what the server failed for a fault, and said so, is asked for again.

The disk can only be filled where the data folder lies on a small file system of its own:
``mount -t tmpfs -o size=300m tmpfs DATA``.
"""

from __future__ import annotations

import hashlib
import json
import queue
import random
import shutil
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from ...runtime.commands.console import PlainParser
from ...runtime.pipeline import ImageToVideo
from .running import IMAGE, RunningServer, events_of, frames_of, serving, write_record

_PROMPTS = ("zoom in", "zoom out", "pan left", "pan right", "")
_WAYS = ("poll", "events", "dropped events", "sync", "dropped request", "cancel", "delete")
_FAULTS = ("worker_killed", "worker_died", "storage")
"""Failures that the faults of this script cause; anything else is wrong."""
_FULL_SECONDS = 4.0
_SMALL_DISK = 1 << 30


def kinds(count: int) -> list[dict[str, Any]]:
    """Different requests, all small: one or two steps, some with guidance, another fit or rate."""
    draw = random.Random(0)
    return [
        {
            "prompt": draw.choice(_PROMPTS),
            "seed": draw.randrange(1 << 31),
            "num_inference_steps": draw.choice((1, 2)),
            "guidance_scale_txt": draw.choice((1.0, 1.0, 3.0)),
            "fit": draw.choice(("crop", "pad", "stretch")),
            "fps": draw.choice((8.0, 12.0)),
        }
        for _ in range(count)
    ]


class Load:
    """The clients of a run, and what they found."""

    def __init__(self, server: RunningServer, requests: list[dict[str, Any]], expected: list[str], total: int) -> None:
        self._server, self._requests, self._expected, self._total = server, requests, expected, total
        self._numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(total):
            self._numbers.put(number)
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.accepted: dict[str, str] = {}
        """Request key -> the id that the server gave it."""
        self.wrong: list[str] = []
        self.ended = 0

    def count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1

    def work(self) -> None:
        """One client: takes requests until there are none."""
        with self._server.client() as client:
            while True:
                try:
                    number = self._numbers.get_nowait()
                except queue.Empty:
                    return
                try:
                    self._one(client, number)
                except Exception as error:
                    self.wrong.append(f"request {number}: {type(error).__name__}: {error}")
                with self._lock:
                    self.ended += 1

    def _one(self, client: httpx.Client, number: int) -> None:
        way = _WAYS[number % len(_WAYS)]
        for attempt in range(30):
            key = f"{number}-{attempt}"
            if way == "dropped request" and attempt == 0:
                self._drop(number, key)
            if way == "sync":
                state = self._sync(client, number, key)
            else:
                video_id = self._ask(client, number, key)
                state = self._follow(client, video_id, way)
                if state == "completed":
                    self._check(client, number, video_id)
            if state not in _FAULTS:
                self.count(f"{way}: {state}")
                return
            self.count(f"failed for a fault: {state}")
        self.wrong.append(f"request {number}: no result after {attempt + 1} attempts")

    def _body(self, number: int) -> tuple[dict[str, str], bytes]:
        fields = self._requests[number % len(self._requests)]
        return {name: str(value) for name, value in fields.items()}, IMAGE.read_bytes()

    def _post(self, client: httpx.Client, path: str, number: int, key: str) -> httpx.Response:
        """Until the server takes the request: a full queue or disk says when to come again."""
        fields, image = self._body(number)
        while True:
            files = {"input_reference": ("photo.jpg", image)}
            answer = client.post(path, data=fields, files=files, headers={"Idempotency-Key": key})
            if answer.status_code not in (429, 503, 507):
                return answer
            self.count(f"answered {answer.status_code}")
            time.sleep(min(1.0, float(answer.headers.get("retry-after", 1))))

    def _ask(self, client: httpx.Client, number: int, key: str) -> str:
        answer = self._post(client, "/v1/videos", number, key)
        answer.raise_for_status()
        video_id = str(answer.json()["id"])
        with self._lock:
            if self.accepted.setdefault(key, video_id) != video_id:
                self.wrong.append(f"request {number}: a repeated key got another video")
        return video_id

    def _drop(self, number: int, key: str) -> None:
        """Send a whole request and leave before the answer; the same key is sent again afterwards."""
        fields, image = self._body(number)
        request = httpx.Request(
            "POST", f"{self._server.address}/v1/videos", data=fields, files={"input_reference": image}
        )
        body = request.read()
        lines = [f"POST /v1/videos HTTP/1.1\r\nIdempotency-Key: {key}\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in request.headers.items()]
        place = urlsplit(self._server.address)
        with socket.create_connection((place.hostname, place.port or 80), timeout=60) as connection:
            connection.sendall("".join([*lines, "\r\n"]).encode() + body)

    def _sync(self, client: httpx.Client, number: int, key: str) -> str:
        answer = self._post(client, "/v1/videos/sync", number, key)
        if answer.status_code == 200:
            video_id = answer.headers["x-video-id"]
            with self._lock:
                self.accepted[key] = video_id
            self._check(client, number, video_id)
            return "completed"
        code = str(answer.json()["error"]["code"])
        with self._lock:
            self.accepted[key] = f"failed {key}"
        if code not in _FAULTS:
            raise RuntimeError(f"sync answered {answer.status_code} {code}")
        return code

    def _follow(self, client: httpx.Client, video_id: str, way: str) -> str:
        """How a video ended: its status, or the code of its failure."""
        if way == "delete":
            client.delete(f"/v1/videos/{video_id}").raise_for_status()
            with self._lock:
                self.counts["deleted"] += 1
            return "deleted"
        if way == "cancel":
            client.post(f"/v1/videos/{video_id}/cancel")
        last, dropped = 0, False
        while way != "poll":
            for number, name, data in events_of(client, video_id, str(last)):
                if number and int(number) <= last:
                    raise RuntimeError(f"event {number} came after event {last}")
                last = int(number or last)
                if name in ("completed", "failed", "cancelled"):
                    return str(data["error"]["code"] if name == "failed" else name)
                if way == "dropped events" and not dropped and name == "started":
                    dropped = True
                    break
            else:
                time.sleep(0.2)  # the stream ended without a result: come again
        while True:
            video = client.get(f"/v1/videos/{video_id}").json()
            if video["status"] in ("completed", "failed", "cancelled"):
                return str(video["error"]["code"] if video["status"] == "failed" else video["status"])
            time.sleep(0.5)

    def _check(self, client: httpx.Client, number: int, video_id: str) -> None:
        while True:
            try:
                frames = frames_of(client, video_id)
                break
            except httpx.HTTPStatusError as error:
                if error.response.status_code != 507:
                    raise
                time.sleep(0.5)
        self.count("compared with the library")
        if hashlib.sha256(frames.tobytes()).hexdigest() != self._expected[number % len(self._expected)]:
            self.wrong.append(f"request {number}: other frames than the library's")


def _disturb(load: Load, server: RunningServer, kills: int, folder: Path, total: int, memory: list[int]) -> None:
    """Kill the worker at even distances, fill the disk once half-way, and note the server's memory."""
    marks = [total * (k + 1) // (kills + 1) for k in range(kills)]
    filled = False
    while load.ended < total:
        memory.append(server.memory())
        if marks and load.ended >= marks[0]:
            worker = server.worker()
            if worker is not None and worker.cpu_times().user > 4:  # it has loaded and works
                with suppress(Exception):
                    worker.kill()
                    load.count("worker killed")
                del marks[0]
        if not filled and load.ended >= total // 2:
            filled = True
            if shutil.disk_usage(folder).total <= _SMALL_DISK:
                load.count("disk filled")
                _fill(folder)
        time.sleep(0.5)


def _fill(folder: Path) -> None:
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    time.sleep(_FULL_SECONDS)
    filler.unlink()


def main() -> None:
    """Run the load, write its record, and end with code 1 where anything was wrong."""
    parser = PlainParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="empty folder for the server's jobs")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--kinds", type=int, default=24, help="different requests")
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--output", type=Path, default=Path("serving_load.json"))
    asked = parser.parse_args()
    requests = kinds(asked.kinds)
    with ImageToVideo.from_bundle(asked.bundle) as model:
        expected = []
        for fields in requests:
            video = model(IMAGE, **fields).frames[0]
            expected.append(hashlib.sha256(video.tobytes()).hexdigest())
    started, memory = time.perf_counter(), list[int]()
    options = ("--max-queue", "24", "--max-batch", "4", "--keep", "0.1GB", "--log-format", "json")
    with serving(asked.data, asked.bundle, *options) as server:
        load = Load(server, requests, expected, asked.requests)
        threads = [threading.Thread(target=load.work, daemon=True) for _ in range(asked.clients)]
        for thread in threads:
            thread.start()
        _disturb(load, server, asked.kills, asked.data, asked.requests, memory)
        for thread in threads:
            thread.join()
        with server.client() as client:
            text = client.get("/metrics").text
        seconds = time.perf_counter() - started
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    quarter = max(1, len(memory) // 4)
    record = {
        "requests": asked.requests,
        "clients": asked.clients,
        "seconds": round(seconds, 1),
        "outcomes": dict(sorted(load.counts.items())),
        "wrong": load.wrong,
        "keys_with_one_video_each": len(load.accepted) == len(set(load.accepted.values())),
        "videos_made": float(figures["consisti2v_videos_total"]),
        "worker_starts": float(figures["consisti2v_worker_starts_total"]),
        "server_mib_first_and_last_quarter": [
            round(sum(part) / len(part) / 2**20, 1) for part in (memory[:quarter], memory[-quarter:])
        ],
    }
    write_record(asked.output, record, [json.dumps(record, indent=2)])
    if load.wrong or load.ended != asked.requests:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
