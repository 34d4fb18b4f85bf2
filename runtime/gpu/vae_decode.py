"""Latents -> 8-bit frames: decoded in chunks, turned to bytes on the GPU, copied out while the next chunk decodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import CancelledError
from ..loop.denoise import Latents
from ..request.settings import FramesCallback
from .device import Gpu
from .device_session import DeviceSession
from .kernels import ELEMENT_SUFFIX, GpuKernels
from .memory import DeviceArray, GpuMemory, PinnedArray


@dataclass(frozen=True)
class Chunk:
    """Frames that are decoded at once, all of one video."""

    video: int
    first: int
    count: int


def chunks(videos: int, frames: int, batch: int) -> list[Chunk]:
    """All frames in chunks of the decoder's batch, in order; the last of a video may be smaller."""
    return [
        Chunk(video, first, min(batch, frames - first)) for video in range(videos) for first in range(0, frames, batch)
    ]


@dataclass
class _Job:
    """One clip on its way."""

    shape: tuple[int, int]
    chunks: list[Chunk]
    events: list[Any]
    pixels: PinnedArray
    overflowed: PinnedArray
    """int32, one for each chunk: not 0 where its decoded numbers are not all finite."""
    latents: Latents
    """[videos * frames, c, h, w], on the host."""
    keep: list[DeviceArray]


class DeviceDecoder:
    """Decodes clips in the order they are handed over.

    Args:
        gpu, kernels: where and with what.
        session: the VAE decoder; its batch is a chunk's size.
        stream: where it runs; None: on the GPU's own stream, behind everything else. On another stream it runs beside
            the next clip's denoising and needs working memory of its own.
    """

    def __init__(self, gpu: Gpu, kernels: GpuKernels, session: DeviceSession, stream: Any | None = None) -> None:
        self._gpu, self._kernels, self._session = gpu, kernels, session
        self._memory = GpuMemory(gpu)
        self._stream = stream or gpu.stream
        self._copies = gpu.new_stream()
        self._jobs: list[_Job] = []
        self._cancelled = False
        # The session's buffers were made on the GPU's own stream.
        gpu.stream.sync()

    def cancel(self) -> None:
        self._cancelled = True

    def restart(self) -> None:
        """Forget a cancellation, and whatever of an earlier call was not collected."""
        self._cancelled = False
        self._drop()

    def _drop(self) -> None:
        if self._jobs:
            # Two streams still read and write what is let go of here.
            self._stream.sync()
            self._copies.sync()
            self._jobs.clear()

    def submit(self, latents: Latents) -> None:
        """Enqueue the decoding of [videos, c, frames, h, w]; returns at once."""
        if self._cancelled:
            raise CancelledError
        session, stream, memory = self._session, self._stream, self._memory
        videos, channels, frames, height, width = latents.shape
        batch = session.device_inputs["latents"].shape[0]
        image = session.device_outputs["image"]
        area = image.shape[2] * image.shape[3]
        # Rows behind the last frame of a chunk that is not full are decoded and left out.
        flat = np.zeros((videos * frames + batch, channels, height, width), np.float32)
        flat[: videos * frames] = latents.transpose(0, 2, 1, 3, 4).reshape(-1, channels, height, width)
        source = memory.upload(flat)
        parts = chunks(videos, frames, batch)
        flags, overflowed = memory.zeros((len(parts),), "int32"), memory.pinned((len(parts),), "int32")
        decoded = memory.empty((videos * frames, *image.shape[2:], 3), "uint8")
        pixels = memory.pinned((videos * frames, *image.shape[2:], 3), "uint8")
        job = _Job((videos, frames), parts, [], pixels, overflowed, flat, [source, decoded, flags])
        # At once: what fails half-way is still under way.
        self._jobs.append(job)
        self._gpu.wait(stream, self._gpu.record(self._gpu.stream))
        for number, chunk in enumerate(job.chunks):
            start = chunk.video * frames + chunk.first
            memory.copy(session.device_inputs["latents"], source[start : start + batch], stream)
            session.bind("latents", session.device_inputs["latents"])
            session.bind("image", image)
            session.enqueue(stream)
            part = decoded[start : start + chunk.count]
            self._kernels.launch(
                f"frames_to_uint8_{ELEMENT_SUFFIX[image.dtype]}",
                stream,
                decoded=image,
                pixels=part,
                overflowed=flags[number : number + 1],
                frames=chunk.count,
                area=area,
            )
            self._gpu.wait(self._copies, self._gpu.record(stream))
            offset = start * area * 3
            self._gpu.copy(pixels.address + offset, part.address, part.nbytes, self._copies)
            self._gpu.copy(overflowed.address + 4 * number, flags.address + 4 * number, 4, self._copies)
            job.events.append(self._gpu.record(self._copies))

    def collect(
        self, on_frames: FramesCallback | None, decode_again: Callable[[Latents], NDArray[np.uint8]]
    ) -> NDArray[np.uint8]:
        """Wait for everything submitted: uint8 [videos, frames of all clips, height, width, 3].

        Args:
            on_frames: told each chunk as soon as it is on the host, while the next ones decode.
            decode_again: latents [n, c, h, w] -> frames, for chunks whose decoded numbers are not all finite.

        Raises:
            CancelledError: :meth:`cancel` was called.
        """
        try:
            return self._collect(on_frames, decode_again)
        finally:
            self._drop()

    def _collect(
        self, on_frames: FramesCallback | None, decode_again: Callable[[Latents], NDArray[np.uint8]]
    ) -> NDArray[np.uint8]:
        done = 0
        clips: list[NDArray[np.uint8]] = []
        for job in self._jobs:
            frames = job.pixels.array.reshape(*job.shape, *job.pixels.array.shape[1:])
            for number, (chunk, event) in enumerate(zip(job.chunks, job.events, strict=True)):
                event.sync()
                if self._cancelled:
                    raise CancelledError
                decoded = frames[chunk.video, chunk.first : chunk.first + chunk.count]
                if job.overflowed.array[number]:
                    start = chunk.video * job.shape[1] + chunk.first
                    decoded[...] = decode_again(job.latents[start : start + chunk.count])
                if on_frames is not None:
                    on_frames(chunk.video, done + chunk.first, decoded)
            clips.append(frames)
            done += job.shape[1]
        return np.concatenate(clips, axis=1)
