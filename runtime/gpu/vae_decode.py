"""Latents -> 8-bit frames: decoded in chunks, turned to bytes on the GPU, copied out while the next chunk decodes.

The decoder is captured as a CUDA graph after its first chunk, whose result the graph has to repeat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..loop.denoise import Latents
from ..request.settings import FramesCallback
from ..stage_failure import is_finite
from .device import Gpu
from .device_session import DeviceSession
from .kernels import ELEMENT_SUFFIX, GpuKernels
from .memory import DeviceArray, GpuMemory
from .step_graph import StepGraph, capture_and_compare


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


class DeviceDecoder:
    """Decodes on the GPU's own stream, and copies each chunk to the host on another while the next one decodes.

    Args:
        gpu, kernels: where and with what.
        session: the VAE decoder; its batch is a chunk's size.
        check_cancelled: raises :class:`CancelledError` once the call is cancelled; asked after each chunk.
        use_graph: replay the decoder as a CUDA graph.
    """

    def __init__(
        self,
        gpu: Gpu,
        kernels: GpuKernels,
        session: DeviceSession,
        check_cancelled: Callable[[], None],
        *,
        use_graph: bool,
    ) -> None:
        self._use_graph = use_graph
        self._captured: StepGraph | None = None
        self._captured_at: tuple[object, ...] | None = None
        """Addresses and context that were captured."""
        self._gpu, self._kernels, self._session, self._check_cancelled = gpu, kernels, session, check_cancelled
        self._memory = GpuMemory(gpu)
        self._copies = gpu.new_stream()

    @property
    def batch(self) -> int:
        """Frames of a chunk."""
        return self._session.device_inputs["latents"].shape[0]

    def decode(
        self,
        latents: DeviceArray,
        videos: int,
        on_frames: FramesCallback | None,
        decode_again: Callable[[Latents], NDArray[np.uint8]],
    ) -> NDArray[np.uint8]:
        """Latents [videos * frames, c, h, w], and behind them rows to fill up a chunk -> uint8 [videos, frames, height,
        width, 3].

        Args:
            on_frames: gets each chunk as soon as it is on the host, while the next ones decode.
            decode_again: latents [n, c, h, w] -> frames, for chunks whose decoded numbers are not all finite.

        Raises:
            CancelledError: the call was cancelled.
        """
        session, memory, stream = self._session, self._memory, self._gpu.stream
        frames = (latents.shape[0] - self.batch) // videos
        batch = self.batch
        image = session.device_outputs["image"]
        area = image.shape[2] * image.shape[3]
        parts = chunks(videos, frames, batch)
        pixels = memory.pinned((videos * frames, *image.shape[2:], 3), "uint8")
        # int32, one for each chunk: not 0 where its decoded numbers are not all finite.
        overflowed = memory.pinned((len(parts),), "int32")
        events = []
        try:
            decoded, flags = memory.empty(pixels.array.shape, "uint8"), memory.zeros((len(parts),), "int32")
            for number, chunk in enumerate(parts):
                start = chunk.video * frames + chunk.first
                memory.copy(session.device_inputs["latents"], latents[start : start + batch])
                self._enqueue(is_last=number + 1 == len(parts))
                part = decoded[start : start + chunk.count]
                self._kernels.launch(
                    f"frames_to_uint8_{ELEMENT_SUFFIX[image.dtype]}",
                    decoded=image,
                    pixels=part,
                    overflowed=flags[number : number + 1],
                    frames=chunk.count,
                    area=area,
                )
                self._gpu.wait(self._copies, self._gpu.record(stream))
                self._gpu.copy(pixels.address + start * area * 3, part.address, part.nbytes, self._copies)
                self._gpu.copy(overflowed.address + 4 * number, flags.address + 4 * number, 4, self._copies)
                events.append(self._gpu.record(self._copies))
            result = pixels.array.reshape(videos, frames, *pixels.array.shape[1:])
            for number, (chunk, event) in enumerate(zip(parts, events, strict=True)):
                event.sync()
                self._check_cancelled()
                shown = result[chunk.video, chunk.first : chunk.first + chunk.count]
                if overflowed.array[number]:
                    start = chunk.video * frames + chunk.first
                    shown[...] = decode_again(memory.download(latents[start : start + chunk.count]))
                if on_frames is not None:
                    on_frames(chunk.video, chunk.first, shown)
            # The pinned memory goes with this call.
            return result.copy()
        finally:
            # Both streams still read and write what is let go of here.
            stream.sync()
            self._copies.sync()

    def _enqueue(self, *, is_last: bool) -> None:
        """Decode the latents in the session's own input into its own output: by the graph where there is one.

        A capture is made on a chunk that is decoded anyway, and costs one more of it; so not on the last one.
        """
        session = self._session
        for name, array in (*session.device_inputs.items(), *session.device_outputs.items()):
            session.bind(name, array)
        session.prepare()
        if self._captured_at != (session.address_version, session.context_version):
            # Without, or of memory that moved.
            self._captured = self._captured_at = None
        if self._captured is not None and self._captured.graph is not None:
            self._captured.graph.launch(self._gpu.stream)
            return
        session.enqueue()
        if not self._use_graph or self._captured is not None or is_last:
            return
        image = session.device_outputs["image"]
        eager = self._memory.download(image)
        if is_finite(eager):  # an overflow is decoded again elsewhere, and proves nothing of a graph
            self._captured = capture_and_compare(self._gpu, session.enqueue, "decoder", {"image": (image, eager)})
            self._captured_at = (session.address_version, session.context_version)
            # A graph that failed may have left anything there.
            self._memory.upload(eager, image)
