"""The stages of a bundle, loaded at first use and kept: what runs before the denoising loop, in it, and after it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CancelledError
from ..kernels.frames import frames_to_uint8
from ..kernels.posterior import posterior_sample
from .backends import Choice, load_in_full_precision
from .bundle.bundle import Bundle
from .bundle.manifest import ModelSpec
from .gpu.device_session import DeviceSession
from .gpu.generation import GpuGeneration
from .loop.batches import UNetRows
from .loop.denoise import Latents
from .loop.feature_cache import FeatureCache
from .loop.finite import check_finite, is_finite, not_finite
from .loop.random_streams import RandomStreams
from .request.settings import FramesCallback, ResolvedSettings
from .session import Array, Session
from .stage_failure import stage_failures
from .text import PromptTokenizer, TextConditioner
from .timings import Timings

_log = logging.getLogger("consisti2v_rt")


class Stages:
    """Text encoder, conditioning, VAE and U-Net of a bundle behind their sessions.

    Args:
        choice: the backend and precision they run in.
        threads: processor threads; None: one per physical core.
        gpu: the device side, where they run on a GPU.
    """

    def __init__(self, bundle: Bundle, choice: Choice, threads: int | None, gpu: GpuGeneration | None) -> None:
        self._bundle, self._choice, self._threads, self._gpu = bundle, choice, threads, gpu
        self.sessions: dict[str, Session] = {}
        self._overflowed: set[str] = set()
        """VAE stages that run in float32 because their half-precision output was not finite."""
        self._text = TextConditioner(PromptTokenizer(bundle), choice.precision)
        self._cancelled = False

    def resume(self) -> None:
        """Take a cancellation back."""
        self._cancelled = False
        for session in self.sessions.values():
            session.resume()

    def cancel(self) -> None:
        """End a run in another thread, and every one to come."""
        self._cancelled = True
        for session in list(self.sessions.values()):
            session.cancel()

    def release(self) -> None:
        """Let go of every stage: its memory, and on a GPU its weights, which other models there take turns with."""
        for session in self.sessions.values():
            if isinstance(session, DeviceSession):
                session.release()
        self.sessions.clear()

    def session(self, stage: str, clip_shape: tuple[int, ...], branches: int = 1) -> Session:
        """The stage's session, loaded at first use, its buffers fitting the clip."""
        dims = self.dims(clip_shape, branches)
        title = self._choice.backend.title
        if stage not in self.sessions:
            with stage_failures(stage, title):
                self.sessions[stage] = self._choice.load(self._bundle, stage, dims, self._threads)
        # A session that was just loaded did not hear of it.
        if self._cancelled:
            raise CancelledError
        with stage_failures(stage, title):
            self.sessions[stage].allocate(dims)
        return self.sessions[stage]

    def dims(self, clip_shape: tuple[int, ...], branches: int) -> dict[str, int]:
        """Sizes of the stages' dynamic dimensions, by name."""
        model = self._bundle.manifest.model
        height, width = clip_shape[-2:]
        return {
            # Independent rows: with a free batch one video's branches run together, whatever the number of videos.
            "rows": model.rows or branches,
            "latent_height": height,
            "latent_width": width,
            "height": height * model.vae_scale_factor,
            "width": width * model.vae_scale_factor,
        }

    def clip_shape(self, videos: int, height: int, width: int) -> tuple[int, ...]:
        return clip_shape(self._bundle.manifest.model, videos, height, width)

    def encode_images(
        self,
        pixels: list[NDArray[np.float32]],
        prompts: list[str],
        settings: ResolvedSettings,
        streams: RandomStreams,
        timings: Timings,
    ) -> Latents:
        """VAE latents [videos, c, 1 or f, h, w], each a posterior sample; an image is sampled once for all its
        videos.
        """
        assert settings.height is not None and settings.width is not None
        shape = self.clip_shape(len(prompts), settings.height, settings.width)
        with timings.measure("load"):
            self.session("vae_encoder", shape)
        moments: list[tuple[Latents, Latents]] = []
        with timings.measure("vae_encoder"):
            for image in pixels:
                parts = []
                for frame in image:
                    outputs = self._run_vae("vae_encoder", shape, frame)
                    parts.append((outputs["mean"].copy(), outputs["logvar"].copy()))
                moments.append((np.concatenate([m for m, _ in parts]), np.concatenate([v for _, v in parts])))
            if len(moments) == 1:
                moments = moments * len(prompts)
            mean, logvar = (np.concatenate([pair[i] for pair in moments]) for i in (0, 1))
            noise = streams.posterior(mean.shape, len(prompts))
            frames = mean.shape[0] // len(prompts)
            copies = noise.shape[0] // mean.shape[0]
            mean, logvar = (np.repeat(_per_clip(t, frames), copies, axis=0) for t in (mean, logvar))
            latents = posterior_sample(
                mean, logvar, _per_clip(noise, frames), self._bundle.manifest.model.vae_scaling_factor
            )
            latents = np.repeat(latents, settings.num_videos_per_prompt // copies, axis=0)
        return np.ascontiguousarray(latents.transpose(0, 2, 1, 3, 4))

    def texts(
        self, prompts: list[str], negatives: list[str], settings: ResolvedSettings, timings: Timings
    ) -> list[list[dict[str, Any]]]:
        """Keys and values for each branch and video."""
        branches = {"none": [prompts], "text": [negatives, prompts], "both": [negatives, negatives, prompts]}
        wanted = branches[settings.guidance]
        shape = self.clip_shape(1, settings.height or 0, settings.width or 0)
        known: dict[str, dict[str, Any]] = {}
        for text in dict.fromkeys(text for branch in wanted for text in branch):
            cached = self._text.cached(text)
            if cached is None:
                with timings.measure("load"):
                    encoder, conditioning = self.session("text_encoder", shape), self.session("conditioning", shape)
                with timings.measure("text_encoder"):
                    embeddings = self._text.encode(text, encoder)
                with timings.measure("conditioning"):
                    cached = self._text.condition(text, embeddings, conditioning)
            known[text] = cached
        copies = settings.num_videos_per_prompt
        return [[known[text] for text in branch for _ in range(copies)] for branch in wanted]

    def unet_rows(
        self,
        texts: list[list[dict[str, Any]]],
        clip_shape: tuple[int, ...],
        settings: ResolvedSettings,
        timings: Timings,
    ) -> Any:
        """The U-Net over all branches and videos, with the batch that the bundle and the settings allow; on a GPU as
        its own loop takes it.
        """
        rows = 1 if settings.guidance_batch == "split" else len(texts)
        session = self.session("unet", clip_shape, rows)
        if self._gpu is not None:
            shallow = self.session("unet_shallow", clip_shape, rows) if settings.cache_interval > 1 else None
            return self._gpu.unet(session, texts, settings.frame_stride, shallow, settings.cache_interval)
        free = self._bundle.manifest.model.rows is None
        resize = partial(self.session, "unet", clip_shape) if free else None
        cache = None
        if settings.cache_interval > 1:
            cache = FeatureCache(settings.cache_interval, partial(self.session, "unet_shallow", clip_shape))
        return UNetRows(session, texts, settings.frame_stride, timings, resize, cache, self._choice.precision)

    def decode(self, latents: Latents, timings: Timings, on_frames: FramesCallback | None) -> NDArray[np.uint8]:
        """[videos, c, frames, h, w] -> uint8 [videos, frames, height, width, 3], one frame at a time as published.

        Raises:
            UserError: the decoder's output is not finite, in float32 either.
        """
        if self.decodes_on_gpu:
            assert self._gpu is not None
            with timings.measure("vae_decoder"):
                return self._gpu.frames(self.sessions.values(), on_frames, partial(self._decode_again, latents.shape))
        with timings.measure("load"):
            self.session("vae_decoder", latents.shape)
        with timings.measure("vae_decoder"):
            videos = []
            for index, video in enumerate(latents):
                frames: list[NDArray[np.uint8]] = []
                for frame in video.transpose(1, 0, 2, 3):
                    frames.append(self._decode_frame(latents.shape, frame))
                    if on_frames is not None:
                        on_frames(index, len(frames) - 1, frames[-1][None])
                videos.append(np.stack(frames))
            return np.stack(videos)

    @property
    def decodes_on_gpu(self) -> bool:
        """Whether frames are handed to the GPU as their clip ends; not after the decoder there overflowed."""
        return self._gpu is not None and "vae_decoder" not in self._overflowed

    def _decode_again(self, clip_shape: tuple[int, ...], frames: Latents) -> NDArray[np.uint8]:
        """Latents [n, c, h, w] whose decoded frames on the GPU are not finite -> uint8 [n, height, width, 3]."""
        self._use_full_precision("vae_decoder", clip_shape)
        return np.stack([self._decode_frame(clip_shape, frame) for frame in frames])

    def _decode_frame(self, clip_shape: tuple[int, ...], frame: Latents) -> NDArray[np.uint8]:
        """Latents [c, h, w] -> uint8 [height, width, 3]."""
        return frames_to_uint8(self._run_vae("vae_decoder", clip_shape, frame)["image"])[0]

    def _run_vae(self, stage: str, clip_shape: tuple[int, ...], value: Latents) -> Mapping[str, Array]:
        """Outputs of a VAE stage for one image or frame, valid until its next run.

        Half precision overflows in the VAE of Stable Diffusion on some pictures (values above 65504), which shows as
        black frames: the stage then runs in float32, from there on.
        """
        session = self.session(stage, clip_shape)
        name = next(iter(session.inputs))
        session.inputs[name][0] = value
        session.run()
        if not all(is_finite(output) for output in session.outputs.values()):
            session = self._use_full_precision(stage, clip_shape)
            session.inputs[name][0] = value
            session.run()
            check_finite(stage, "fp32", session.outputs.values())
        return session.outputs

    def _use_full_precision(self, stage: str, clip_shape: tuple[int, ...]) -> Session:
        """The stage in float32, for the rest of this object's life; says so once."""
        if self._choice.precision == "fp32":
            raise not_finite(stage, "fp32")
        if stage not in self._overflowed:
            dims = self.dims(clip_shape, 1)
            session, where = load_in_full_precision(self._bundle, self._choice, stage, dims, self._threads)
            # The half-precision session goes: its memory may be needed.
            self.sessions[stage] = session
            self._overflowed.add(stage)
            _log.warning(
                "stage %s produced values that are not finite in %s: it runs in %s from now on",
                stage,
                self._choice.precision,
                where,
            )
        return self.session(stage, clip_shape)


def clip_shape(model: ModelSpec, videos: int, height: int, width: int) -> tuple[int, ...]:
    """Latents of a clip, [videos, c, frames, h, w], for a size in pixels."""
    factor = model.vae_scale_factor
    return (videos, model.latent_channels, model.frames, height // factor, width // factor)


def _per_clip(array: Latents, frames: int) -> Latents:
    """[clips * frames, c, h, w] -> [clips, frames, c, h, w]."""
    return array.reshape(-1, frames, *array.shape[1:])
