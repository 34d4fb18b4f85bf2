"""The stages of a bundle, loaded at first use and kept: what runs before the denoising loop, in it, and after it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.frames import frames_to_uint8
from ..kernels.posterior import posterior_sample
from .backends import Choice
from .bundle import Bundle
from .denoise import Latents
from .errors import CancelledError
from .feature_cache import FeatureCache
from .gpu.generation import GpuGeneration
from .random_streams import RandomStreams
from .session import Session
from .settings import FramesCallback, ResolvedSettings
from .text import PromptTokenizer, TextConditioner
from .timings import Timings
from .unet_rows import UNetRows


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
        self._text = TextConditioner(PromptTokenizer(bundle))
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

    def session(self, stage: str, clip_shape: tuple[int, ...], branches: int = 1) -> Session:
        """The stage's session, loaded at first use, its buffers fitting the clip."""
        dims = self.dims(clip_shape, branches)
        if stage not in self.sessions:
            self.sessions[stage] = self._choice.load(self._bundle, stage, dims, self._threads)
        # A session that was just loaded did not hear of it.
        if self._cancelled:
            raise CancelledError
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
        model = self._bundle.manifest.model
        factor = model.vae_scale_factor
        return (videos, model.latent_channels, model.frames, height // factor, width // factor)

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
            session = self.session("vae_encoder", shape)
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
        return UNetRows(session, texts, settings.frame_stride, timings, resize, cache)

    def decode(self, latents: Latents, timings: Timings, on_frames: FramesCallback | None) -> NDArray[np.uint8]:
        """[videos, c, frames, h, w] -> uint8 [videos, frames, height, width, 3], one frame at a time as published."""
        if self._gpu is not None:
            with timings.measure("vae_decoder"):
                return self._gpu.frames(self.sessions.values(), on_frames)
        with timings.measure("load"):
            session = self.session("vae_decoder", latents.shape)
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


def _per_clip(array: Latents, frames: int) -> Latents:
    """[clips * frames, c, h, w] -> [clips, frames, c, h, w]."""
    return array.reshape(-1, frames, *array.shape[1:])
