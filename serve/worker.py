"""A child process that reads photos and makes videos: ``python -m consisti2v_rt.serve.worker``.

It speaks JSON, one object a line. The first line that it reads says which bundles to load; it answers ``ready``. A line
``run`` names jobs, which become the videos of one call; ``cancel`` ends that call; ``load`` has a model go over to
other weights. When its standard input ends, the server is gone, and it ends at once.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CancelledError, UserError, first_line
from ..locations import ASSETS
from ..runtime.call_queue import CancelToken
from ..runtime.commands.console import plain
from ..runtime.files.replace_files import replacing
from ..runtime.media.image import check_image, load_image
from ..runtime.media.video_file import save_frames
from ..runtime.pipeline import ImageToVideo
from ..runtime.request.settings import GenerationSettings, StepProgress
from ..runtime.video import GeneratedVideos
from .preview import Preview
from .store import FRAMES, IMAGE, VIDEO

Send = Callable[[dict[str, Any]], None]
_PREVIEW_SECONDS = 0.1
"""Least time between two previews: a quick step is not to wait for them."""


class _JobFailedError(Exception):
    """A job cannot be done: a code, and a sentence for its client."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Worker:
    """The bundles of this process, loaded and warm."""

    def __init__(self, start: dict[str, Any], send: Send) -> None:
        self._send, self._models = send, dict[str, ImageToVideo]()
        self._previews: dict[str, Preview] = {}
        self._max_image_pixels, self._verify = int(start["max_photo_pixels"]), bool(start["verify"])
        self._has_previews = bool(start["previews"])
        engine: dict[str, Any] = {name: start[name] for name in ("device", "precision", "threads", "verify")}
        devices: dict[str, str] = {}
        for name, folder in start["models"].items():
            started = time.perf_counter()
            self._models[name] = ImageToVideo.from_bundle(folder, **engine)
            self._warm(name, started)
            devices[name] = self._device(name)
        send({"say": "ready", "devices": devices})

    def load(self, order: dict[str, Any]) -> None:
        """Go over to another bundle of a model, and say so; where that cannot be, the weights before are kept."""
        name, started = order["model"], time.perf_counter()
        model, device = self._models[name], self._device(order["model"])
        former = model.bundle.path
        try:
            model.load_weights(order["folder"], verify=self._verify, expect_digest=order["digest"])
            if self._device(name) != device:
                raise UserError(
                    f"the new weights would run on {self._device(name)}, not on {device}: the engines hold the weights "
                    "before. Build those of the served bundle with --strip."
                )
            self._warm(name, started)
        except (UserError, MemoryError) as error:
            if model.bundle.path != former:
                # Where this fails too the process ends, and another one loads what was before.
                model.load_weights(former, verify=self._verify)
            text = str(error) if isinstance(error, UserError) else "there is not enough memory for the new weights."
            self._send({"say": "refused", "message": text})

    def _warm(self, name: str, started: float) -> None:
        """Run every stage once; of the steps one is enough, and guidance loads nothing more."""
        model = self._models[name]
        videos = model(ASSETS / "example.jpg", "", seed=0, num_inference_steps=1, autoregress_steps=1)
        if self._has_previews:
            self._previews[name] = Preview(videos.latents, videos.frames)
        seconds = time.perf_counter() - started
        self._send({"say": "loaded", "model": name, "digest": model.bundle.digest, "seconds": seconds})

    def _device(self, name: str) -> str:
        choice = self._models[name].backend
        return f"{choice.backend.title}, {choice.precision}"

    def run(self, order: dict[str, Any], token: CancelToken) -> None:
        """Make the videos of an order, and say how it ended."""
        started = time.perf_counter()
        try:
            images = [self._image(Path(job["folder"])) for job in order["jobs"]]
            videos = self._generate(order, images, token)
            saving = time.perf_counter()
            sizes = [self._save(Path(job["folder"]), videos, i) for i, job in enumerate(order["jobs"])]
        except CancelledError:
            self._send({"say": "cancelled"})
        except _JobFailedError as error:
            self._send({"say": "failed", "code": error.code, "message": str(error)})
        except UserError as error:
            code = "time_limit" if "the time limit of" in str(error) else "generation_failed"
            self._send({"say": "failed", "code": code, "message": str(error)})
        except MemoryError:
            message = "there is not enough memory for this video: take a smaller size, or give the server more memory."
            self._send({"say": "failed", "code": "out_of_memory", "message": message})
        except Exception as error:
            # A fault of ours or of a library ends the job, not the worker; the log has its place.
            logging.getLogger(__name__).exception("a job failed")
            message = (
                f"the video could not be made ({type(error).__name__}: {first_line(error)}): report it as a fault."
            )
            self._send({"say": "failed", "code": "internal_error", "message": message})
        else:
            ended = time.perf_counter()
            timings = dict(videos.timings) | {"file": ended - saving}
            self._send({"say": "done", "timings": timings, "bytes": sizes, "seconds": ended - started})

    def _image(self, folder: Path) -> Any:
        try:
            # Bytes, not the path: no sentence is to show where the server keeps its files.
            data = (folder / IMAGE).read_bytes()
            size = check_image(data)
            if size is not None and size[0] * size[1] > self._max_image_pixels:
                raise UserError(
                    f"the image has {size[0] * size[1] / 1e6:.1f} megapixels: this server takes "
                    f"{self._max_image_pixels / 1e6:g}; scale it down first."
                )
            return load_image(data)
        except UserError as error:
            raise _JobFailedError("invalid_image", str(error)) from None
        except OSError as error:
            message = f"the uploaded image cannot be read any more ({error.strerror}): send it again."
            raise _JobFailedError("storage", message) from None

    def _generate(self, order: dict[str, Any], images: list[Any], token: CancelToken) -> GeneratedVideos:
        jobs = order["jobs"]
        options = dict(order["settings"])
        options["seed"] = [job["seed"] for job in jobs]
        options["negative_prompt"] = [job["negative_prompt"] for job in jobs]
        model, preview = self._models[order["model"]], self._previews.get(order["model"])
        settings = GenerationSettings.from_options(options)
        last_preview = 0.0

        def on_step(progress: StepProgress) -> None:
            nonlocal last_preview
            message: dict[str, Any] = {"say": "step", "step": progress.clip * progress.steps + progress.step + 1}
            now = time.monotonic()
            if preview is not None and now - last_preview >= _PREVIEW_SECONDS:
                last_preview = now
                message["previews"] = [preview.data_uri(latents) for latents in progress.latents]
            self._send(message)
            if progress.clip + 1 == progress.clips and progress.step + 1 == progress.steps:
                self._send({"say": "decoding"})

        prompts = [job["prompt"] for job in jobs]
        # Single ones as such: a call of one video takes the library's usual way.
        return model(
            images if len(jobs) > 1 else images[0],
            prompts if len(jobs) > 1 else prompts[0],
            settings=settings,
            callback=on_step,
            cancel_token=token,
            time_limit=order["time_limit"],
        )

    def _save(self, folder: Path, videos: GeneratedVideos, index: int) -> int:
        """Write a video and its frames; returns their bytes."""
        frames, video = folder / FRAMES, folder / VIDEO
        try:
            with replacing([frames]) as (temporary,), temporary.open("wb") as file:
                np.save(file, videos.frames[index])
            save_frames(videos.frames[index], video, videos.settings.fps)
            return frames.stat().st_size + video.stat().st_size
        except (UserError, OSError) as error:
            reason = first_line(error.strerror or error) if isinstance(error, OSError) else "its disk may be full"
            message = f"the server could not write the video ({reason}): try again later, or have its disk cleared."
            logging.getLogger(__name__).error("a video could not be written: %s", plain(error))
            raise _JobFailedError("storage", message) from None


def main() -> None:
    """Serve the orders that standard input brings."""
    # Libraries print: what they write goes to the log, and the messages have a pipe of their own.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        with lock:
            channel.write(json.dumps(message) + "\n")
            channel.flush()

    orders: queue.SimpleQueue[tuple[dict[str, Any], CancelToken]] = queue.SimpleQueue()
    start = json.loads(sys.stdin.readline() or "null")
    if start is None:
        return

    def read() -> None:
        token = CancelToken()
        for line in sys.stdin:
            order = json.loads(line)
            if order["do"] == "run":
                token = CancelToken()
                orders.put((order, token))
            elif order["do"] == "load":
                orders.put((order, token))
            elif order["do"] == "cancel":
                token.cancel()
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    try:
        worker = Worker(start, send)
    except UserError as error:
        send({"say": "refused", "message": str(error)})
        sys.exit(2)
    while True:
        order, token = orders.get()
        if order["do"] == "load":
            worker.load(order)
        else:
            worker.run(order, token)


if __name__ == "__main__":
    main()
