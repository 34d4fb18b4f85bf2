"""The denoising loop on the device: the same algorithm as ``runtime/loop/denoise.py``, latents never on the host.

The host only enqueues: it stays a few steps ahead, draws fresh noise where a scheduler wants some, and tells progress
from events. Nothing waits for a step but the slot it needs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...errors import CancelledError, UserError
from ...kernels.sampler import StepTable
from ..loop.denoise import FrameInitPlan, Guidance, Latents
from ..timings import Timings
from .device import Gpu
from .frame_init import DeviceFrameInit
from .kernels import GpuKernels
from .memory import DeviceArray, GpuMemory
from .pacing import IN_FLIGHT, Pacer
from .step_work import StepKey, StepWork
from .unet_on_device import DeviceUNet

OnStep = Callable[[int, int, Latents], None]


class DeviceLoop:
    """Runs clips; buffers and graphs are kept while clips are alike.

    Args:
        gpu, kernels: where and with what.
        use_graph: False enqueues every step as it is.
    """

    def __init__(self, gpu: Gpu, kernels: GpuKernels, *, use_graph: bool = True) -> None:
        self._gpu, self._kernels, self._memory, self._use_graph = gpu, kernels, GpuMemory(gpu), use_graph
        self._cancelled = False
        self._frame_init: tuple[tuple[int, ...], DeviceFrameInit] | None = None
        self._work: tuple[DeviceUNet, StepWork] | None = None

    def cancel(self) -> None:
        """Stop before the next step is enqueued."""
        self._cancelled = True

    def resume(self) -> None:
        self._cancelled = False

    @property
    def graph_reasons(self) -> dict[str, str]:
        """Kind of step -> why it runs without a CUDA graph; empty text where it runs with one."""
        return self._work[1].graph_reasons() if self._work else {}

    def denoise_clip(
        self,
        unet: DeviceUNet,
        first_frame: Latents,
        static_video: Latents,
        noise: Latents | DeviceArray,
        *,
        table: StepTable,
        guidance: Guidance,
        frame_init_plan: FrameInitPlan | None,
        draw_noise: Callable[[tuple[int, ...]], Latents],
        on_step: OnStep | None = None,
        timings: Timings | None = None,
        device_noise: tuple[int, list[int]] | None = None,
    ) -> Latents:
        """Latents of one clip per video; arguments and result as of :func:`~..denoise.denoise_clip`.

        Args:
            noise: on the host or the device.
            on_step: told each step once it is done, a few steps late; None: no latents are copied to the host.
            timings: "unet" is the GPU's time for all steps, guidance and scheduler included.
            device_noise: offset of the Philox streams and a seed per video: fresh noise is drawn on the device, and
                `draw_noise` is not called.

        Raises:
            CancelledError: :meth:`cancel` was called.
            UserError: the result is not finite.
        """
        timings = Timings() if timings is None else timings
        work = self._prepare(unet, noise.shape, table, guidance, device_noise)
        with timings.measure("frame_init"):
            noisy = self._frame_init_for(noise.shape).initial_latents(
                static_video, noise, frame_init_plan, work.latents
            )
        clean = self._memory.upload(first_frame.astype(np.float32, copy=False))
        unet.set_first_frames(clean, noisy if guidance.mode == "both" else None)
        work.start(table, guidance, device_noise[1] if device_noise else None)
        try:
            seconds = self._run_steps(work, table, guidance, None if device_noise else draw_noise, on_step)
        except BaseException:
            # Steps under way still use the buffers that the next call will write.
            self._gpu.stream.sync()
            raise
        timings.add("unet", seconds)
        latents = self._memory.download(work.latents)
        if not np.isfinite(latents).all():
            raise UserError(
                "the denoised latents are not finite: try another --precision, and check the bundle with "
                "'consisti2v inspect'."
            )
        return np.concatenate([first_frame, latents], axis=2)

    def _run_steps(
        self,
        work: StepWork,
        table: StepTable,
        guidance: Guidance,
        draw_noise: Callable[[tuple[int, ...]], Latents] | None,
        on_step: OnStep | None,
    ) -> float:
        """All steps; seconds of GPU time."""
        shape = work.key.shape
        timesteps = [int(timestep) for timestep in table.timesteps]
        previews = [self._memory.pinned(shape, "float32") for _ in range(IN_FLIGHT)] if on_step else []
        from_host = draw_noise if table.needs_noise else None
        fresh = [self._memory.pinned(shape, "float32") for _ in range(IN_FLIGHT)] if from_host else []

        def finished(step: int) -> None:
            if on_step is not None:
                on_step(step, timesteps[step], previews[step % IN_FLIGHT].array)

        pacer = Pacer(self._gpu, finished)
        pacer.start()
        for step in range(len(timesteps)):
            pacer.make_room()
            if self._cancelled:
                raise CancelledError
            if from_host is not None and work.noise is not None:
                fresh[step % IN_FLIGHT].array[...] = from_host(shape)
                self._memory.copy(work.noise, fresh[step % IN_FLIGHT])
            work.run(guidance.acts_in(step))
            if on_step is not None:
                self._memory.copy(previews[step % IN_FLIGHT], work.latents)
            pacer.enqueued(step)
        pacer.drain()
        return pacer.seconds()

    def _prepare(
        self,
        unet: DeviceUNet,
        clip_shape: tuple[int, ...],
        table: StepTable,
        guidance: Guidance,
        device_noise: tuple[int, list[int]] | None,
    ) -> StepWork:
        videos, channels, frames, height, width = clip_shape
        offset = device_noise[0] if device_noise and table.needs_noise else None
        key = StepKey(
            steps=len(table.timesteps),
            states=table.states,
            shape=(videos, channels, frames - 1, height, width),
            rescale=guidance.rescale,
            needs_noise=table.needs_noise,
            device_noise_stream=offset,
        )
        if self._work is None or self._work[0] is not unet or self._work[1].key != key:
            self._work = None  # freed before the new buffers are made
            self._work = (unet, StepWork(self._gpu, self._kernels, unet, key, self._use_graph))
        return self._work[1]

    def _frame_init_for(self, shape: tuple[int, ...]) -> DeviceFrameInit:
        if self._frame_init is None or self._frame_init[0] != shape:
            self._frame_init = None
            self._frame_init = (shape, DeviceFrameInit(self._gpu, self._kernels, shape))
        return self._frame_init[1]
