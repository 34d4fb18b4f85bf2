"""The library: a photo and a prompt in, a video out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.ddim import SchedulerConfig, alphas_cumprod
from ..kernels.frame_init import frame_init_mask
from ..kernels.guidance import BRANCHES
from ..kernels.noise import base_noise_shape, mix_noise
from .backends import Choice, choose
from .bundle import Bundle
from .camera_motion import camera_motion_crops
from .denoise import FrameInitPlan, Guidance, Latents, denoise_clip
from .errors import BackendError, UserError
from .gpu.generation import GpuGeneration
from .gpu_options import GpuOptions, check_gpu_options
from .image import ImageSource, load_image, preprocess
from .random_streams import RandomStreams
from .request import Request, check_request
from .settings import FramesCallback, GenerationSettings, StepCallback, StepProgress
from .stages import Stages
from .timings import Timings
from .video import GeneratedVideos

_log = logging.getLogger("consisti2v_rt")
_PLAIN = GpuOptions()


class ImageToVideo:
    """A loaded bundle. Stages are loaded at first use and kept: a second call pays no load.

    Example:
        >>> animate = ImageToVideo.from_bundle("consisti2v-256")
        >>> videos = animate("photo.jpg", "a cat turns its head", seed=7)
        >>> videos.save("cat.mp4")
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        device: str = "auto",
        precision: str | None = None,
        gpu: GpuOptions = _PLAIN,
        choice: Choice | None = None,
    ) -> None:
        """As :meth:`from_bundle`; a `choice` that was already made stands for device and precision."""
        self.bundle = bundle
        self._automatic = choice is None and device == "auto"
        if choice is None:
            check_gpu_options(gpu, device)
        self._asked, self._failed = (threads, precision, gpu), set[str]()
        self._use(choose(bundle, device, precision) if choice is None else choice)
        try:
            self._scheduler = SchedulerConfig.from_dict(bundle.manifest.scheduler)
        except ValueError as error:
            raise UserError(f"the bundle's scheduler cannot be used: {error}") from None

    def _use(self, choice: Choice) -> None:
        """Run everything by this choice from now on."""
        threads, _, gpu = self._asked
        self.backend = choice
        self._gpu = None if choice.backend.device != "cuda" else GpuGeneration(self.bundle, choice, gpu)
        if self._gpu is None and gpu.device_noise:
            raise UserError("device_noise needs a GPU: pass device cuda, or leave it off.")
        self._stages = Stages(self.bundle, choice, threads, self._gpu)

    @classmethod
    def from_bundle(
        cls,
        path: str | os.PathLike[str],
        *,
        verify: bool = True,
        expect_digest: str | None = None,
        threads: int | None = None,
        device: str = "auto",
        precision: str | None = None,
        gpu: GpuOptions = _PLAIN,
    ) -> ImageToVideo:
        """Open a bundle made by ``consisti2v export``.

        Args:
            path: its folder.
            verify: hash every file that is used, before it is.
            expect_digest: the bundle's digest, as ``consisti2v inspect`` prints it; another bundle is refused.
            threads: processor threads; None: one per physical core.
            device: auto (a GPU where one can be used, else the processor), cpu, cuda or openvino.
            precision: fp32, fp16, ...; None: the best that the bundle holds for the device.
            gpu: how a GPU is used: little memory, its own noise.

        Raises:
            UserError: the bundle is incomplete, altered or of another version, or nothing can run it as asked.
        """
        bundle = Bundle.open(path, verify=verify, expect_digest=expect_digest)
        return cls(bundle, threads=threads, device=device, precision=precision, gpu=gpu)

    def __call__(
        self,
        image: ImageSource | Sequence[ImageSource],
        prompt: str | Sequence[str] = "",
        *,
        settings: GenerationSettings | None = None,
        latents: NDArray[np.float32] | None = None,
        callback: StepCallback | None = None,
        on_frames: FramesCallback | None = None,
        **options: Any,
    ) -> GeneratedVideos:
        """Animate photos.

        Args:
            image: a photo (path, bytes, file, Pillow image or array), or a list with one per prompt.
            prompt: what happens, or a list.
            settings: options as an object; `options` change single ones of them.
            latents: initial noise [videos, c, frames, h, w] of the first clip instead of drawn noise.
            callback: called after every step with a :class:`StepProgress`.
            on_frames: called with a video's number, a first frame's number and uint8 frames [n, height, width, 3], in
                order, as soon as they are decoded: to encode them while the next ones decode.
            **options: fields of :class:`GenerationSettings`: ``num_inference_steps=25, seed=7, ...``.

        Returns:
            One video per prompt and ``num_videos_per_prompt``, prompt-major.

        Raises:
            UserError: bad input; nothing was computed.
        """
        while True:
            try:
                return self._animate(image, prompt, settings, latents, callback, on_frames, options)
            except BackendError as error:
                # A stage is loaded before the first step and the first frame: nothing was told of this attempt.
                if not self._automatic:
                    raise
                self._failed.add(self.backend.backend.name)
                _log.warning("%s is not used: %s", self.backend.backend.title, error)
                self._use(choose(self.bundle, "auto", self._asked[1], self._failed))

    def _animate(
        self,
        image: ImageSource | Sequence[ImageSource],
        prompt: str | Sequence[str],
        settings: GenerationSettings | None,
        latents: NDArray[np.float32] | None,
        callback: StepCallback | None,
        on_frames: FramesCallback | None,
        options: dict[str, Any],
    ) -> GeneratedVideos:
        """One attempt with the chosen backend; arguments as :meth:`__call__`."""
        request = self.check(image, prompt, settings=settings, **options)
        settings, prompts, streams = request.settings, request.prompts, request.streams
        assert settings.height is not None and settings.width is not None
        clip_shape = self._stages.clip_shape(request.videos, settings.height, settings.width)
        if latents is not None and (latents.shape != clip_shape or not np.isfinite(latents).all()):
            raise UserError(f"latents must be finite numbers of shape {list(clip_shape)}, not {list(latents.shape)}.")

        self._stages.resume()
        if self._gpu is not None:
            self._gpu.begin(self._stages.dims(clip_shape, BRANCHES[settings.guidance]), request)
        timings = Timings()
        with timings.measure("image"):
            pixels = [self._pixels(load_image(source), settings) for source in request.images]
        static = self._stages.encode_images(pixels, prompts, settings, streams, timings)
        first_frame = static[:, :, :1]
        texts = self._stages.texts(prompts, request.negatives, settings, timings)
        with timings.measure("load"):
            if self._gpu is not None:
                # One that does not load is found before the loop, not after it.
                self._stages.session("vae_decoder", clip_shape)
            unet = self._stages.unet_rows(texts, clip_shape, settings, timings)

        clips = []
        for clip in range(settings.autoregress_steps):
            with timings.measure("noise"):
                given = latents if clip == 0 else None
                noise = self._noise(clip_shape, settings, streams, clip) if given is None else given.astype(np.float32)

            def report(step: int, timestep: int, current: Latents, clip: int = clip) -> None:
                assert callback is not None
                steps = settings.num_inference_steps
                callback(StepProgress(clip, settings.autoregress_steps, step, steps, timestep, current))

            # What is left of it beside the U-Net and FrameInit: guidance and the scheduler.
            with timings.measure("loop"):
                clips.append(
                    self._denoise_clip(
                        unet,
                        first_frame,
                        static,
                        noise,
                        table=request.table,
                        guidance=self._guidance(settings),
                        frame_init_plan=self._frame_init(settings, clip_shape),
                        draw_noise=streams.randn,
                        timings=timings,
                        **({} if callback is None else {"on_step": report}),
                    )
                )
            if self._gpu is not None:
                # Where the memory allows it decodes beside the next clip, which shows this one's last frame once more.
                self._gpu.decode(self._stages.session("vae_decoder", clip_shape), clips[-1][:, :, min(clip, 1) :])
            # The next clip begins with the last latent frame, neither decoded nor encoded again.
            static = first_frame = clips[-1][:, :, -1:]

        result = np.concatenate([clips[0], *(clip[:, :, 1:] for clip in clips[1:])], axis=2)
        frames = self._stages.decode(result, timings, on_frames)
        return GeneratedVideos(frames, result, settings, timings)

    def check(
        self,
        image: ImageSource | Sequence[ImageSource],
        prompt: str | Sequence[str] = "",
        *,
        settings: GenerationSettings | None = None,
        **options: Any,
    ) -> Request:
        """Refuse now what a call with these arguments would refuse, without running anything.

        Raises:
            UserError: options that are not possible, or numbers of images, prompts and seeds that do not fit.
        """
        settings = GenerationSettings.from_options(options, settings)
        return check_request(image, prompt, settings, self.bundle.manifest, self._scheduler)

    def cancel(self) -> None:
        """Stop a call that runs in another thread, within one operation of the graph; it raises
        :class:`CancelledError`.
        """
        self._stages.cancel()
        if self._gpu is not None:
            self._gpu.cancel()

    # -- parts of a call ----------------------------------------------------------------------------------------------

    def _pixels(self, image: Any, settings: GenerationSettings) -> NDArray[np.float32]:
        """[1 or f, 3, height, width] in [-1, 1]: the photo, or the crops of a camera motion."""
        assert settings.height is not None and settings.width is not None and settings.video_length is not None
        if settings.camera_motion is None:
            return preprocess(image, settings.height, settings.width)
        return camera_motion_crops(
            image, settings.camera_motion, settings.video_length, settings.height, settings.width
        )

    @property
    def gpu(self) -> GpuGeneration | None:
        """What runs on the GPU, and how; None on a processor."""
        return self._gpu

    @property
    def _denoise_clip(self) -> Callable[..., Latents]:
        return denoise_clip if self._gpu is None else self._gpu.denoise_clip

    def _noise(self, shape: tuple[int, ...], settings: GenerationSettings, streams: RandomStreams, clip: int) -> Any:
        """The initial noise of a clip; on the GPU where it is drawn there."""
        kind = settings.noise_sampling_method
        if self._gpu is not None and self._gpu.options.device_noise:
            return self._gpu.noise(kind, settings.noise_alpha, shape, clip)
        base_shape = base_noise_shape(kind, shape)
        base, independent = streams.noise(base_shape, shape)
        return mix_noise(kind, base, independent, settings.noise_alpha)

    def _guidance(self, settings: GenerationSettings) -> Guidance:
        return Guidance(
            settings.guidance,
            settings.guidance_scale_txt,
            settings.guidance_scale_img,
            settings.guidance_rescale,
            settings.guided_steps,
        )

    def _frame_init(self, settings: GenerationSettings, clip_shape: tuple[int, ...]) -> FrameInitPlan | None:
        if not settings.use_frameinit:
            return None
        level, kind = settings.frameinit_noise_level, settings.frameinit_filter
        d_s, d_t, order = settings.frameinit_d_s, settings.frameinit_d_t, settings.frameinit_order
        assert level is not None and kind is not None and d_s is not None and d_t is not None and order is not None
        mask = frame_init_mask(kind, *clip_shape[2:], d_s, d_t, order)
        return FrameInitPlan(float(alphas_cumprod(self._scheduler)[level]), mask)
