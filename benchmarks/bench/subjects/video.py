"""A whole video: photo and prompt in, a file out, as a program that stays in memory makes it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ....runtime.backends import BACKENDS, Choice
from ....runtime.bundle.bundle import Bundle
from ....runtime.media.image import load_image
from ....runtime.pipeline import ImageToVideo
from ....runtime.request.settings import StepProgress
from ....runtime.video import GeneratedVideos
from . import ProgressCallback, Run


class WholeVideo:
    """:class:`ImageToVideo` with one set of options; every run makes the same video from new prompts.

    Args:
        bundle: its folder.
        backend: a name of :data:`BACKENDS`.
        precision: of the graphs.
        image: the photo.
        prompt: what happens.
        options: of :class:`GenerationSettings`; the negative prompt among them is varied like the prompt.
        threads: None: as the backend chooses.
        suffix: of the file that is written.
    """

    def __init__(
        self,
        bundle: str,
        backend: str,
        precision: str,
        image: str,
        prompt: str,
        options: dict[str, Any],
        threads: int | None = None,
        suffix: str = ".mp4",
    ) -> None:
        self._bundle, self._image, self._prompt, self._options = bundle, image, prompt, options
        self._backend = next(entry for entry in BACKENDS if entry.name == backend)
        self._precision, self._threads, self._suffix = precision, threads, suffix
        self._animate: ImageToVideo | None = None
        self._videos: GeneratedVideos | None = None

    def load(self, report: ProgressCallback) -> dict[str, Any]:
        """Open and verify the bundle; its stages are loaded by the first run."""
        started = time.perf_counter()
        # Several backends may share a device: it is this one that is measured, not the best of them.
        choice = Choice(self._backend, self._precision, "measured")
        self._animate = ImageToVideo(Bundle.open(self._bundle), threads=self._threads, choice=choice)
        self._photo = load_image(Path(self._image))
        return {"seconds": time.perf_counter() - started}

    def run(self, number: int, report: ProgressCallback) -> Run:
        """Make and write the video. Blanks at its end make a prompt new to the cache of texts, and the same to the
        tokenizer: every run pays the text stages, as a new prompt does.
        """
        assert self._animate is not None

        def advance(state: StepProgress) -> None:
            report((state.step + 1) / state.steps)

        blanks = " " * number
        options = {**self._options, "negative_prompt": self._options.get("negative_prompt", "") + blanks}
        started = time.perf_counter()
        videos = self._animate(self._photo, self._prompt + blanks, callback=advance, **options)
        with tempfile.TemporaryDirectory() as folder, videos.timings.measure("file"):
            videos.save(Path(folder) / f"video{self._suffix}")
        self._videos = videos
        return {
            "seconds": time.perf_counter() - started,
            "parts": dict(videos.timings),
            "device_seconds": None,
        }

    def output(self, path: str, report: ProgressCallback) -> None:
        """Latents [videos, c, frames, h, w]."""
        assert self._videos is not None
        np.save(path, self._videos.latents)
