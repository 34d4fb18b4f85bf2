"""The denoising loop on the device: the same algorithm as ``runtime/loop/denoise.py``, latents never on the host.

The host only enqueues: it stays a few steps ahead, draws fresh noise where a scheduler wants some, and tells progress
from events. Nothing waits for a step but the slot it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...kernels.sampler import StepTable
from ..loop.denoise import FrameInitPlan, Guidance, Latents, OnStep
from ..timings import Timings
from .device import Gpu
from .frame_init import DeviceFrameInit
from .in_flight import IN_FLIGHT, InFlightLimiter
from .kept import Kept
from .kernels import GpuKernels
from .memory import DeviceArray, GpuMemory
from .step_work import StepKey, StepWork
from .unet_on_device import DeviceUNet


@dataclass(frozen=True)
class DeviceNoise:
    """A scheduler's fresh noise, drawn on the GPU by the Philox kernel."""

    stream: int
    """Offset of the clip's Philox streams."""
    seeds: list[int]
    """One for each video."""


class DeviceLoop:
    """Runs clips; buffers and graphs are kept while clips are alike.

    Args:
        gpu, kernels: where and with what.
        check_cancelled: raises :class:`CancelledError` once the call is cancelled; asked before each step.
        use_graph: False enqueues every step as it is.
    """

    def __init__(
        self, gpu: Gpu, kernels: GpuKernels, check_cancelled: Callable[[], None], *, use_graph: bool = True
    ) -> None:
        self._gpu, self._kernels, self._memory, self._use_graph = gpu, kernels, GpuMemory(gpu), use_graph
        self._check_cancelled = check_cancelled
        self._frame_init = Kept[DeviceFrameInit]()
        self._work = Kept[StepWork]()

    @property
    def graph_reasons(self) -> dict[str, str]:
        """Kind of step -> why it runs without a CUDA graph; empty text where it runs with one."""
        return self._work.value.graph_reasons() if self._work.value else {}

    def denoise_clip(
        self,
        unet: DeviceUNet,
        first_frame: Latents | DeviceArray,
        static_video: Latents | DeviceArray,
        noise: Latents | DeviceArray,
        *,
        table: StepTable,
        guidance: Guidance,
        frame_init_plan: FrameInitPlan | None,
        draw_noise: Callable[[tuple[int, ...]], Latents] | DeviceNoise,
        on_step: OnStep | None = None,
        timings: Timings | None = None,
    ) -> DeviceArray:
        """Latents of one clip per video, float32 [videos * f, c, h, w]: frame by frame, as the decoder reads them.
        Arguments as of :func:`~..loop.denoise.denoise_clip`; arrays are on the host or the device.

        Args:
            draw_noise: draws on the host, or says how the device does.
            on_step: told each step once it is done, a few steps late; None: no latents are copied to the host.
            timings: "unet" is the GPU's time for all steps, guidance and scheduler included.

        Raises:
            CancelledError: the call was cancelled.
        """
        timings = Timings() if timings is None else timings
        on_device = draw_noise if isinstance(draw_noise, DeviceNoise) else None
        work = self._work_for(unet, noise.shape, table, guidance, on_device)
        with timings.measure("frame_init"):
            init = self._frame_init.get(noise.shape, lambda: DeviceFrameInit(self._gpu, self._kernels, noise.shape))
            noisy = init.initial_latents(static_video, noise, frame_init_plan, work.latents)
        clean = self._memory.on_device(first_frame)
        unet.set_first_frames(clean, noisy if guidance.mode == "both" else None)
        work.start(table, guidance, on_device.seeds if on_device else None)
        from_host = None if isinstance(draw_noise, DeviceNoise) or not table.needs_noise else draw_noise
        try:
            seconds = self._run_steps(work, table, guidance, from_host, on_step)
        except BaseException:
            # Steps under way still use the buffers that the next call will write.
            self._gpu.stream.sync()
            raise
        timings.add("unet", seconds)
        videos, channels, frames, height, width = noise.shape
        result = self._memory.empty((videos * frames, channels, height, width), "float32")
        for video in range(videos):
            first = video * frames
            self._memory.copy_frames(result[first : first + 1], clean[video : video + 1])
            self._memory.copy_frames(result[first + 1 : first + frames], work.latents[video : video + 1])
        return result

    def _run_steps(
        self,
        work: StepWork,
        table: StepTable,
        guidance: Guidance,
        from_host: Callable[[tuple[int, ...]], Latents] | None,
        on_step: OnStep | None,
    ) -> float:
        """All steps; seconds of GPU time."""
        shape = work.key.shape
        timesteps = [int(timestep) for timestep in table.timesteps]
        previews = [self._memory.pinned(shape, "float32") for _ in range(IN_FLIGHT)] if on_step else []
        fresh = [self._memory.pinned(shape, "float32") for _ in range(IN_FLIGHT)] if from_host else []

        def finished(step: int) -> None:
            if on_step is not None:
                on_step(step, timesteps[step], previews[step % IN_FLIGHT].array)

        limiter = InFlightLimiter(self._gpu, finished)
        limiter.start()
        for step in range(len(timesteps)):
            limiter.make_room()
            self._check_cancelled()
            if from_host is not None and work.noise is not None:
                fresh[step % IN_FLIGHT].array[...] = from_host(shape)
                self._memory.copy(work.noise, fresh[step % IN_FLIGHT])
            work.run(guidance.acts_in(step))
            if on_step is not None:
                self._memory.copy(previews[step % IN_FLIGHT], work.latents)
            limiter.enqueued(step)
        limiter.drain()
        return limiter.seconds()

    def _work_for(
        self,
        unet: DeviceUNet,
        clip_shape: tuple[int, ...],
        table: StepTable,
        guidance: Guidance,
        on_device: DeviceNoise | None,
    ) -> StepWork:
        videos, channels, frames, height, width = clip_shape
        key = StepKey(
            steps=len(table.timesteps),
            states=table.states,
            shape=(videos, channels, frames - 1, height, width),
            rescale=guidance.rescale,
            needs_noise=table.needs_noise,
            device_noise_stream=on_device.stream if on_device and table.needs_noise else None,
        )
        return self._work.get((unet, key), lambda: StepWork(self._gpu, self._kernels, unet, key, self._use_graph))
