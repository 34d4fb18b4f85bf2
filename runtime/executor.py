"""What every device does with a call: one protocol, one class for the processor and one for a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ..kernels.ddim import SchedulerConfig
from .backends import Choice
from .bundle.bundle import Bundle
from .call_queue import CancelToken
from .gpu.options import GpuOptions
from .loop.denoise import Decoded, OnStep
from .loop.executor import CpuExecutor
from .request.request import Request
from .request.settings import FramesCallback
from .stages import Stages
from .text import Texts
from .timings import Timings


class Executor(Protocol):
    """Runs one call at a time: :meth:`prepare`, for each clip :meth:`initial_noise` and :meth:`denoise`, then
    :meth:`decode`.
    """

    stages: Stages
    """The bundle's graphs, as the backend runs them."""

    def hold(self, token: CancelToken) -> AbstractContextManager[Callable[[], None]]:
        """Have the device for the block, and stop what runs when the token is cancelled; gives the stop itself."""

    def prepare(self, request: Request, timings: Timings) -> None:
        """Before anything is loaded: see that the call fits into the device's memory.

        Raises:
            UserError: it does not.
        """

    def initial_noise(self, clip: int) -> Any:
        """Noise [videos, c, f, h, w] of a clip, where the device keeps it."""

    def denoise(self, texts: Texts, static: Any, noise: Any, on_step: OnStep | None) -> Any:
        """Latents of one clip per video, where the device keeps them.

        Args:
            texts: the text attention's keys and values, by branch and video.
            static: latents [videos, c, 1 or f, h, w]: the photo held still, or moved by the camera; or what
                :meth:`next_start` gave. Its frame 0 is the clip's.
            noise: from :meth:`initial_noise`, or an array of the caller's.
            on_step: called after each step with its index, its timestep and the latents.
        """

    def next_start(self, clip: Any) -> Any:
        """The clip's latent frame that the next one begins with: neither decoded nor encoded again. It is the last, or
        as many frames before the end as the clips overlap.
        """

    def decode(self, clips: Sequence[Any], on_frames: FramesCallback | None) -> Decoded:
        """All clips as frames, and as latents on the host; `on_frames` gets frames as they are decoded."""

    def release(self) -> None:
        """Free the stages and the device's memory."""


def open_executor(
    bundle: Bundle, choice: Choice, scheduler: SchedulerConfig, threads: int | None, options: GpuOptions
) -> Executor:
    """The executor of the chosen backend's device; nothing is loaded yet.

    Args:
        threads: processor threads; None: one per physical core.
        options: how a GPU is used.
    """
    stages = Stages(bundle, choice, threads)
    if choice.backend.device == "cuda":
        from .gpu.executor import GpuExecutor

        return GpuExecutor(stages, scheduler, options)
    return CpuExecutor(stages, scheduler)
