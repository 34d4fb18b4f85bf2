"""A call on the processor, in ONNX Runtime or OpenVINO."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from ...kernels.ddim import SchedulerConfig
from ...kernels.noise import base_noise_shape, mix_noise
from ..call_queue import CancelToken
from ..request.request import Request
from ..request.settings import FramesCallback
from ..stages import Stages
from ..text import Texts
from ..timings import Timings
from .batches import BatchedUNet
from .denoise import Decoded, FrameInitPlan, Guidance, Latents, OnStep, denoise_clip, join_clips
from .feature_cache import FeatureCache


class CpuExecutor:
    """An :class:`~..executor.Executor` on NumPy arrays."""

    def __init__(self, stages: Stages, scheduler: SchedulerConfig) -> None:
        self.stages, self._scheduler = stages, scheduler

    @contextmanager
    def hold(self, token: CancelToken) -> Iterator[Callable[[], None]]:
        self.stages.resume()
        with token.listening(self.stages.cancel):
            yield self.stages.cancel

    def prepare(self, request: Request, timings: Timings) -> None:
        self._request, self._timings = request, timings
        self._shape = self.stages.clip_shape(request.videos, request.settings)

    def initial_noise(self, clip: int) -> Latents:
        settings = self._request.settings
        kind = settings.noise_sampling_method
        base, independent = self._request.streams.noise(base_noise_shape(kind, self._shape), self._shape)
        return mix_noise(kind, base, independent, settings.noise_alpha)

    def denoise(self, texts: Texts, static: Latents, noise: Latents, on_step: OnStep | None) -> Latents:
        request, timings = self._request, self._timings
        with timings.measure("load"):
            unet = self._unet(texts)
        # What is left of it beside the U-Net and FrameInit: guidance and the scheduler.
        with timings.measure("loop"):
            return denoise_clip(
                unet,
                static[:, :, :1],
                static,
                noise,
                table=request.table,
                guidance=Guidance.of(request.settings),
                frame_init_plan=FrameInitPlan.of(request.settings, self._scheduler, self._shape),
                draw_noise=request.streams.randn,
                on_step=on_step,
                timings=timings,
            )

    def _unet(self, texts: Texts) -> BatchedUNet:
        """The U-Net over all branches and videos, with the batch that the bundle and the settings allow."""
        stages, settings = self.stages, self._request.settings
        session = stages.session("unet", self._shape, stages.unet_rows(settings, len(texts)))
        resize = partial(stages.session, "unet", self._shape) if stages.bundle.manifest.model.rows is None else None
        cache = None
        if settings.cache_interval > 1:
            cache = FeatureCache(settings.cache_interval, partial(stages.session, "unet_shallow", self._shape))
        return BatchedUNet(session, texts, settings.frame_stride, self._timings, resize, cache, stages.choice.precision)

    def next_start(self, clip: Latents) -> Latents:
        start = clip.shape[2] - self._request.settings.overlap
        return clip[:, :, start : start + 1]

    def decode(self, clips: Sequence[Latents], on_frames: FramesCallback | None) -> Decoded:
        latents = join_clips(clips, self._request.settings.overlap)
        with self._timings.measure("load"):
            self.stages.session("vae_decoder", self._shape)
        with self._timings.measure("vae_decoder"):
            return Decoded(self.stages.decode_frames(self._shape, latents, on_frames), latents)

    def release(self) -> None:
        self.stages.sessions.clear()
