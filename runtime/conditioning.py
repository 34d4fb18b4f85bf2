"""What a call is conditioned on: its photos as latents, its prompts as keys and values of the text attention."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..kernels.vae import posterior_sample
from .loop.denoise import Latents
from .media.fit import camera_motion_crops, fit_image
from .media.image import load_image
from .request.request import Request
from .stages import Stages
from .text import KeyValues, Texts
from .timings import Timings


def load_images(request: Request, timings: Timings) -> list[NDArray[np.float32]]:
    """Each photo as float32 [1 or f, 3, height, width] in [-1, 1]: one image, or the crops of a camera motion.

    Raises:
        UserError: a photo cannot be read.
    """
    settings = request.settings
    height, width = settings.height, settings.width
    assert height is not None and width is not None
    with timings.measure("image"):
        images = [load_image(source) for source in request.images]
        if settings.camera_motion is None:
            return [fit_image(image, height, width, settings.fit) for image in images]
        motion, frames = settings.camera_motion, settings.video_length
        return [camera_motion_crops(image, motion, frames, height, width, settings.fit) for image in images]


def encode_images(stages: Stages, pixels: list[NDArray[np.float32]], request: Request, timings: Timings) -> Latents:
    """VAE latents [videos, c, 1 or f, h, w], each a posterior sample; an image is sampled once for all its videos."""
    settings, prompts = request.settings, len(request.prompts)
    shape = stages.clip_shape(prompts, settings)
    with timings.measure("load"):
        stages.session("vae_encoder", shape)
    with timings.measure("vae_encoder"):
        moments: list[tuple[Latents, Latents]] = []
        for image in pixels:
            outputs = [
                {name: array.copy() for name, array in stages.run_vae("vae_encoder", shape, frame).items()}
                for frame in image
            ]
            mean, logvar = (np.concatenate([output[name] for output in outputs]) for name in ("mean", "logvar"))
            moments.append((mean, logvar))
        if len(moments) == 1:
            moments = moments * prompts
        mean, logvar = (np.concatenate(parts) for parts in zip(*moments, strict=True))
        noise = request.streams.posterior(mean.shape, prompts)
        frames = mean.shape[0] // prompts
        copies = noise.shape[0] // mean.shape[0]
        mean, logvar = (np.repeat(_per_clip(array, frames), copies, axis=0) for array in (mean, logvar))
        scale = stages.bundle.manifest.model.vae_scaling_factor
        latents = posterior_sample(mean, logvar, _per_clip(noise, frames), scale)
        latents = np.repeat(latents, settings.num_videos_per_prompt // copies, axis=0)
    return np.ascontiguousarray(latents.transpose(0, 2, 1, 3, 4))


def encode_texts(stages: Stages, request: Request, timings: Timings) -> Texts:
    """Keys and values for each guidance branch and video, the prompt's branch last; a prompt is encoded once."""
    prompts, negatives, settings = request.prompts, request.negatives, request.settings
    branches = {"none": [prompts], "text": [negatives, prompts], "both": [negatives, negatives, prompts]}
    wanted = branches[settings.guidance]
    shape = stages.clip_shape(1, settings)
    known: dict[str, KeyValues] = {}
    for text in dict.fromkeys(text for branch in wanted for text in branch):
        values = stages.text.cached(text)
        if values is None:
            with timings.measure("load"):
                encoder, conditioning = (stages.session(name, shape) for name in ("text_encoder", "conditioning"))
            with timings.measure("text_encoder"):
                embeddings = stages.text.encode(text, encoder)
            with timings.measure("conditioning"):
                values = stages.text.condition(text, embeddings, conditioning)
        known[text] = values
    return [[known[text] for text in branch for _ in range(settings.num_videos_per_prompt)] for branch in wanted]


def _per_clip(array: Latents, frames: int) -> Latents:
    """[clips * frames, c, h, w] -> [clips, frames, c, h, w]."""
    return array.reshape(-1, frames, *array.shape[1:])
