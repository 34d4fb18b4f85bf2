"""The library: a photo and a prompt in, a video out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.ddim import SchedulerConfig, alphas_cumprod
from ..kernels.frame_init import frame_init_mask
from ..kernels.frames import frames_to_uint8
from ..kernels.guidance import BRANCHES
from ..kernels.noise import base_noise_shape, mix_noise
from ..kernels.posterior import posterior_sample
from .backends import Choice, choose
from .bundle import Bundle
from .camera_motion import camera_motion_crops
from .denoise import FrameInitPlan, Guidance, Latents, denoise_clip
from .errors import CancelledError, UserError
from .feature_cache import FeatureCache
from .gpu.generation import GpuGeneration
from .gpu_options import GpuOptions
from .image import ImageSource, load_image, preprocess
from .random_streams import RandomStreams
from .request import Request, check_request
from .session import Session
from .settings import FramesCallback, GenerationSettings, StepCallback, StepProgress
from .text import PromptTokenizer, TextConditioner
from .timings import Timings
from .unet_rows import UNetRows
from .video import GeneratedVideos

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
        self.backend = choose(bundle, device, precision) if choice is None else choice
        self._gpu = None if self.backend.backend.device != "cuda" else GpuGeneration(bundle, self.backend, gpu)
        if self._gpu is None and gpu.device_noise:
            raise UserError("device_noise needs a GPU: pass device cuda, or leave it off.")
        self._threads = threads
        self._sessions: dict[str, Session] = {}
        self._cancelled = False
        self._text = TextConditioner(PromptTokenizer(bundle))
        try:
            self._scheduler = SchedulerConfig.from_dict(bundle.manifest.scheduler)
        except ValueError as error:
            raise UserError(f"the bundle's scheduler cannot be used: {error}") from None

    @classmethod
    def from_bundle(
        cls,
        path: str | os.PathLike[str],
        *,
        verify: bool = True,
        threads: int | None = None,
        device: str = "auto",
        precision: str | None = None,
        gpu: GpuOptions = _PLAIN,
    ) -> ImageToVideo:
        """Open a bundle made by ``consisti2v export``.

        Args:
            path: its folder.
            verify: hash every file first.
            threads: processor threads; None: one per physical core.
            device: auto (a GPU where one can be used, else the processor), cpu, cuda or openvino.
            precision: fp32, fp16, ...; None: the best that the bundle holds for the device.
            gpu: how a GPU is used: little memory, its own noise.

        Raises:
            UserError: the bundle is incomplete, altered or of another version, or nothing can run it as asked.
        """
        return cls(Bundle.open(path, verify=verify), threads=threads, device=device, precision=precision, gpu=gpu)

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
        request = self.check(image, prompt, settings=settings, **options)
        settings, prompts, streams = request.settings, request.prompts, request.streams
        assert settings.height is not None and settings.width is not None
        clip_shape = self._clip_shape(request.videos, settings.height, settings.width)
        if latents is not None and (latents.shape != clip_shape or not np.isfinite(latents).all()):
            raise UserError(f"latents must be finite numbers of shape {list(clip_shape)}, not {list(latents.shape)}.")

        self._cancelled = False
        for session in self._sessions.values():
            session.resume()
        if self._gpu is not None:
            self._gpu.begin(self._dims(clip_shape, BRANCHES[settings.guidance]), request)
        timings = Timings()
        with timings.measure("image"):
            pixels = [self._pixels(load_image(source), settings) for source in request.images]
        static = self._encode_images(pixels, prompts, settings, streams, timings)
        first_frame = static[:, :, :1]
        texts = self._texts(prompts, request.negatives, settings, timings)
        with timings.measure("load"):
            unet = self._unet_rows(texts, clip_shape, settings, timings)

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
                self._gpu.decode(self._session("vae_decoder", clip_shape), clips[-1][:, :, min(clip, 1) :])
            # The next clip begins with the last latent frame, neither decoded nor encoded again.
            static = first_frame = clips[-1][:, :, -1:]

        result = np.concatenate([clips[0], *(clip[:, :, 1:] for clip in clips[1:])], axis=2)
        frames = self._decode(result, timings, on_frames)
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
        self._cancelled = True
        for session in list(self._sessions.values()):
            session.cancel()
        if self._gpu is not None:
            self._gpu.cancel()

    # -- stages --------------------------------------------------------------------------------------------------------

    def _session(self, stage: str, clip_shape: tuple[int, ...], branches: int = 1) -> Session:
        """The stage's session, loaded at first use, its buffers fitting the clip."""
        dims = self._dims(clip_shape, branches)
        if stage not in self._sessions:
            self._sessions[stage] = self.backend.load(self.bundle, stage, dims, self._threads)
        # A session that was just loaded did not hear of it.
        if self._cancelled:
            raise CancelledError
        self._sessions[stage].allocate(dims)
        return self._sessions[stage]

    def _dims(self, clip_shape: tuple[int, ...], branches: int) -> dict[str, int]:
        """Sizes of the stages' dynamic dimensions, by name."""
        model = self.bundle.manifest.model
        height, width = clip_shape[-2:]
        return {
            # Independent rows: with a free batch one video's branches run together, whatever the number of videos.
            "rows": model.rows or branches,
            "latent_height": height,
            "latent_width": width,
            "height": height * model.vae_scale_factor,
            "width": width * model.vae_scale_factor,
        }

    def _clip_shape(self, videos: int, height: int, width: int) -> tuple[int, ...]:
        model = self.bundle.manifest.model
        factor = model.vae_scale_factor
        return (videos, model.latent_channels, model.frames, height // factor, width // factor)

    def _pixels(self, image: Any, settings: GenerationSettings) -> NDArray[np.float32]:
        """[1 or f, 3, height, width] in [-1, 1]: the photo, or the crops of a camera motion."""
        assert settings.height is not None and settings.width is not None and settings.video_length is not None
        if settings.camera_motion is None:
            return preprocess(image, settings.height, settings.width)
        return camera_motion_crops(
            image, settings.camera_motion, settings.video_length, settings.height, settings.width
        )

    def _encode_images(
        self,
        pixels: list[NDArray[np.float32]],
        prompts: list[str],
        settings: GenerationSettings,
        streams: RandomStreams,
        timings: Timings,
    ) -> Latents:
        """VAE latents [videos, c, 1 or f, h, w], each a posterior sample; an image is sampled once for all its
        videos.
        """
        assert settings.height is not None and settings.width is not None
        shape = self._clip_shape(len(prompts), settings.height, settings.width)
        with timings.measure("load"):
            session = self._session("vae_encoder", shape)
        moments: list[tuple[Latents, Latents]] = []
        with timings.measure("vae_encoder"):
            for image in pixels:
                parts = []
                for frame in image:
                    session.inputs["image"][0] = frame
                    session.run()
                    parts.append((session.outputs["mean"].copy(), session.outputs["logvar"].copy()))
                moments.append((np.concatenate([m for m, _ in parts]), np.concatenate([v for _, v in parts])))
            if len(moments) == 1:
                moments = moments * len(prompts)
            mean, logvar = (np.concatenate([pair[i] for pair in moments]) for i in (0, 1))
            noise = streams.posterior(mean.shape, len(prompts))
            frames = mean.shape[0] // len(prompts)
            copies = noise.shape[0] // mean.shape[0]
            mean, logvar = (np.repeat(_per_clip(t, frames), copies, axis=0) for t in (mean, logvar))
            latents = posterior_sample(
                mean, logvar, _per_clip(noise, frames), self.bundle.manifest.model.vae_scaling_factor
            )
            latents = np.repeat(latents, settings.num_videos_per_prompt // copies, axis=0)
        return np.ascontiguousarray(latents.transpose(0, 2, 1, 3, 4))

    def _texts(
        self, prompts: list[str], negatives: list[str], settings: GenerationSettings, timings: Timings
    ) -> list[list[dict[str, Any]]]:
        """Keys and values for each branch and video."""
        branches = {"none": [prompts], "text": [negatives, prompts], "both": [negatives, negatives, prompts]}
        wanted = branches[settings.guidance]
        shape = self._clip_shape(1, settings.height or 0, settings.width or 0)
        known: dict[str, dict[str, Any]] = {}
        for text in dict.fromkeys(text for branch in wanted for text in branch):
            cached = self._text.cached(text)
            if cached is None:
                with timings.measure("load"):
                    encoder, conditioning = self._session("text_encoder", shape), self._session("conditioning", shape)
                with timings.measure("text_encoder"):
                    embeddings = self._text.encode(text, encoder)
                with timings.measure("conditioning"):
                    cached = self._text.condition(text, embeddings, conditioning)
            known[text] = cached
        copies = settings.num_videos_per_prompt
        return [[known[text] for text in branch for _ in range(copies)] for branch in wanted]

    def _unet_rows(
        self,
        texts: list[list[dict[str, Any]]],
        clip_shape: tuple[int, ...],
        settings: GenerationSettings,
        timings: Timings,
    ) -> Any:
        """The U-Net over all branches and videos, with the batch that the bundle and the settings allow; on a GPU as
        :meth:`_denoise_clip` takes it there.
        """
        rows = 1 if settings.guidance_batch == "split" else len(texts)
        session = self._session("unet", clip_shape, rows)
        if self._gpu is not None:
            return self._gpu.unet(session, texts, settings.frame_stride)
        free = self.bundle.manifest.model.rows is None
        resize = partial(self._session, "unet", clip_shape) if free else None
        cache = None
        if settings.cache_interval > 1:
            cache = FeatureCache(settings.cache_interval, partial(self._session, "unet_shallow", clip_shape))
        return UNetRows(session, texts, settings.frame_stride, timings, resize, cache)

    @property
    def gpu(self) -> GpuGeneration | None:
        """What runs on the GPU, and how; None on a processor."""
        return self._gpu

    @property
    def _denoise_clip(self) -> Callable[..., Latents]:
        return denoise_clip if self._gpu is None else self._gpu.denoise_clip

    def _decode(self, latents: Latents, timings: Timings, on_frames: FramesCallback | None) -> NDArray[np.uint8]:
        """[videos, c, frames, h, w] -> uint8 [videos, frames, height, width, 3], one frame at a time as published."""
        if self._gpu is not None:
            with timings.measure("vae_decoder"):
                return self._gpu.frames(self._sessions.values(), on_frames)
        with timings.measure("load"):
            session = self._session("vae_decoder", latents.shape)
        with timings.measure("vae_decoder"):
            videos = []
            for index, video in enumerate(latents):
                frames: list[NDArray[np.uint8]] = []
                for frame in video.transpose(1, 0, 2, 3):
                    session.inputs["latents"][0] = frame
                    session.run()
                    frames.append(frames_to_uint8(session.outputs["image"])[0])
                    if on_frames is not None:
                        on_frames(index, len(frames) - 1, frames[-1][None])
                videos.append(np.stack(frames))
            return np.stack(videos)

    # -- numbers -------------------------------------------------------------------------------------------------------

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


def _per_clip(array: Latents, frames: int) -> Latents:
    """[clips * frames, c, h, w] -> [clips, frames, c, h, w]."""
    return array.reshape(-1, frames, *array.shape[1:])
