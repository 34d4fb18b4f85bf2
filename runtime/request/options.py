"""The options of a call as type checkers and editors see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict


class OtherNames(TypedDict, total=False):
    """Names that users of diffusers and of the command line know; see :data:`~.option_table.ALIASES`."""

    steps: int | None
    num_steps: int | None
    guidance_scale: float | None
    image_guidance_scale: float | None
    frames: int | None
    num_frames: int | None
    clips: int
    num_clips: int
    videos_per_prompt: int
    num_images_per_prompt: int
    noise: str
    frameinit: bool
    sampler: str | None
    stride: int | None
    frame_rate: float
    generator: Any
    """A ``torch.Generator``, or one per video: its ``initial_seed()`` is the seed, whatever it has drawn since."""


class GenerationOptions(OtherNames, total=False):
    """The fields of :class:`~.settings.GenerationSettings`, where they are documented."""

    preset: str | None
    negative_prompt: str | Sequence[str] | None
    num_inference_steps: int | None
    scheduler: str | None
    timesteps: Sequence[int] | None
    guidance_scale_txt: float | None
    guidance_scale_img: float | None
    guidance_rescale: float | None
    guidance_interval: tuple[float, float] | None
    guidance_batch: str
    cache_interval: int
    eta: float
    seed: int | Sequence[int] | None
    frame_stride: int | None
    noise_sampling_method: str
    noise_alpha: float
    use_frameinit: bool
    frameinit_noise_level: int | None
    frameinit_filter: str | None
    frameinit_d_s: float | None
    frameinit_d_t: float | None
    frameinit_order: int | None
    camera_motion: str | None
    fit: str
    num_videos_per_prompt: int
    autoregress_steps: int
    chain: str
    height: int | None
    width: int | None
    video_length: int | None
    fps: float
