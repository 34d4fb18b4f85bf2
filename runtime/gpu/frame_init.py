"""FrameInit on the device: kernel, R2C, kernel, C2R, kernel. See ``kernels/frame_init.py`` for the meaning."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from ...kernels.frame_init import frame_init
from ..loop.denoise import FrameInitPlan, Latents
from .cufft import RealTransform
from .device import Gpu
from .kernels import GpuKernels
from .memory import DeviceArray, GpuMemory

_log = logging.getLogger("consisti2v_rt")


class DeviceFrameInit:
    """The loop's initial latents from noise, with or without FrameInit; plan, mask and buffers are kept between clips.

    Without cuFFT the transform runs on the processor: some milliseconds a clip, the same numbers.

    Args:
        gpu, kernels: where and with what.
        shape: (videos, c, f, h, w), frame 0 included.
    """

    def __init__(self, gpu: Gpu, kernels: GpuKernels, shape: tuple[int, ...]) -> None:
        self._gpu, self._kernels, self._memory, self._shape = gpu, kernels, GpuMemory(gpu), shape
        self._planes = shape[0] * shape[1]
        self._frames, self._area = shape[2], shape[3] * shape[4]
        self._noise = self._memory.empty(shape, "float32")
        self._difference = self._memory.empty(shape, "float32")
        self._spectrum: DeviceArray | None = None
        self._transform: RealTransform | None = None
        self._mask: tuple[Any, DeviceArray] | None = None
        self.on_device = False
        """Whether the last transform ran there."""

    def initial_latents(
        self,
        static_video: Latents | DeviceArray,
        noise: Latents | DeviceArray,
        plan: FrameInitPlan | None,
        latents: DeviceArray,
    ) -> DeviceArray:
        """Write the frames to denoise, [videos, c, f-1, h, w], into `latents`.

        Args:
            static_video: [videos, c, 1 or f, h, w], on the host or the device.
            noise: [videos, c, f, h, w], likewise.
            plan: None: the noise is all there is.

        Returns:
            Frame 0 of the initial noise, [videos, c, 1, h, w]; see :func:`~..denoise.denoise_clip`.
        """
        transform = None if plan is None else self._prepare()
        if plan is not None and transform is None:
            static, drawn = self._memory.on_host(static_video), self._memory.on_host(noise)
            noise, plan = frame_init(static, drawn, plan.alpha_cumprod, plan.mask), None
        self.on_device = plan is not None
        if isinstance(noise, np.ndarray):
            self._memory.upload(noise, self._noise)
        else:
            self._memory.copy(self._noise, noise)
        correction = None
        if plan is not None and transform is not None:
            correction = self._correction(static_video, plan, transform)
        first_frame = self._memory.empty((*self._shape[:2], 1, *self._shape[3:]), "float32")
        self._kernels.launch(
            "initial_latents",
            noise=self._noise,
            correction=correction,
            first_frame=first_frame,
            latents=latents,
            scale=1 / (self._frames * self._area),
            **self._sizes(),
        )
        return first_frame

    def _correction(
        self, static_video: Latents | DeviceArray, plan: FrameInitPlan, transform: RealTransform
    ) -> DeviceArray:
        """IFFT(M F(z - noise)), unnormalised, in the difference's memory."""
        assert self._spectrum is not None
        alpha = np.float32(plan.alpha_cumprod)
        static = self._memory.on_device(static_video)
        self._kernels.launch(
            "frame_init_difference",
            static_latents=static,
            noise=self._noise,
            difference=self._difference,
            signal=float(np.sqrt(alpha)),
            spread=float(np.sqrt(np.float32(1) - alpha)),
            static_frames=static_video.shape[2],
            **self._sizes(),
        )
        transform.forward(self._difference.address, self._spectrum.address)
        bins = int(plan.mask.size)
        self._kernels.launch(
            "low_pass_mix", spectrum=self._spectrum, mask=self._upload_mask(plan), planes=self._planes, bins=bins
        )
        transform.inverse(self._spectrum.address, self._difference.address)
        return self._difference

    def _prepare(self) -> RealTransform | None:
        """The transform of this size, made at first use; None where there is no cuFFT."""
        if self._transform is None:
            frames, height, width = self._shape[2:]
            try:
                self._transform = RealTransform((frames, height, width), self._planes, self._gpu.stream)
            except RuntimeError as error:
                _log.warning("FrameInit runs on the processor: %s", error)
                return None
            self._spectrum = self._memory.empty((self._planes, frames, height, width // 2 + 1, 2), "float32")
        return self._transform

    def _upload_mask(self, plan: FrameInitPlan) -> DeviceArray:
        if self._mask is None or self._mask[0] is not plan.mask:
            self._mask = (plan.mask, self._memory.upload(np.asarray(plan.mask)))
        return self._mask[1]

    def _sizes(self) -> dict[str, Any]:
        return {"planes": self._planes, "frames": self._frames, "area": self._area}
