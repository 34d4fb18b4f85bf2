"""One call from photos to frames; what each device does differently is behind its :class:`~.executor.Executor`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CancelledError
from .conditioning import encode_images, encode_texts, load_images
from .executor import Executor
from .loop.denoise import Latents, OnStep
from .request.request import Request
from .request.settings import FramesCallback, StepCallback, StepProgress
from .timings import Timings
from .video import GeneratedVideos


def generate(
    executor: Executor,
    request: Request,
    latents: NDArray[np.float32] | None,
    callback: StepCallback | None,
    on_frames: FramesCallback | None,
    timings: Timings,
) -> GeneratedVideos:
    """Run a checked request; arguments as of :meth:`~.pipeline.ImageToVideo.__call__`."""
    stages, settings = executor.stages, request.settings
    executor.prepare(request, timings)
    static: Any = encode_images(stages, load_images(request, timings), request, timings)
    texts = encode_texts(stages, request, timings)
    clips: list[Any] = []
    for clip in range(settings.autoregress_steps):
        with timings.measure("noise"):
            noise = executor.initial_noise(clip) if latents is None or clip > 0 else latents
        clips.append(executor.denoise(texts, static, noise, _reporter(callback, request, clip)))
        static = executor.next_start(clips[-1])
    frames, result = executor.decode(clips, on_frames)
    return GeneratedVideos(frames, result, settings, timings)


def _reporter(callback: StepCallback | None, request: Request, clip: int) -> OnStep | None:
    """Tell the caller of each step of a clip; a callback that returns False ends the call."""
    if callback is None:
        return None
    clips, steps = request.settings.autoregress_steps, request.settings.num_inference_steps

    def report(step: int, timestep: int, current: Latents) -> None:
        answer = callback(StepProgress(clip, clips, step, steps, timestep, current))
        # Comparisons of arrays give NumPy's own False.
        if isinstance(answer, bool | np.bool_) and not answer:
            where = f"step {step + 1} of {steps}" + (f" of clip {clip + 1} of {clips}" if clips > 1 else "")
            raise CancelledError(f"the callback stopped the call after {where}")

    return report
