"""A call, checked: everything that can be refused before a model runs is refused here."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ...errors import UserError
from ...kernels.ddim import SchedulerConfig
from ...kernels.sampler import StepTable
from ...kernels.schedulers import step_table
from ..bundle.manifest import Manifest, ModelSpec
from ..bundle.recommended import notices
from ..loop.random_streams import RandomStreams
from ..media.image import ImageSource, image_size
from .presets import PRESETS, Presets
from .settings import GenerationSettings, ResolvedSettings


@dataclass(frozen=True)
class Request:
    """What one call asks for, in lists of equal length, and the numbers that follow from it alone."""

    settings: ResolvedSettings
    """The bundle's defaults and the seed filled in."""
    prompts: list[str]
    negatives: list[str]
    """One per prompt."""
    images: list[ImageSource]
    """One per prompt, or a single one for all."""
    streams: RandomStreams
    table: StepTable
    """The scheduler's steps."""
    notices: dict[str, str] = field(default_factory=dict)
    """What is asked that the model does not know: a sentence each for "prompt" and "camera_motion"."""

    @property
    def videos(self) -> int:
        return len(self.prompts) * self.settings.num_videos_per_prompt


def check_request(
    image: ImageSource | Sequence[ImageSource],
    prompt: str | Sequence[str],
    settings: GenerationSettings,
    manifest: Manifest,
    scheduler: SchedulerConfig,
    presets: Presets = PRESETS,
) -> Request:
    """Match images, prompts and seeds, fill in the bundle's defaults, and check all of it.

    Raises:
        UserError: anything that does not fit; images are not read yet.
    """
    prompts, negatives, images = _match(prompt, settings.negative_prompt, image)
    if isinstance(settings.fit, str) and settings.fit == "auto":
        settings = with_nearest_size(settings, images, manifest.model)
    chosen = settings.resolved(manifest, presets)
    if chosen.seed is None:
        chosen = replace(chosen, seed=secrets.randbits(31))
    streams = RandomStreams(chosen.seed, len(prompts) * chosen.num_videos_per_prompt)
    try:
        table = step_table(chosen.scheduler, scheduler, chosen.num_inference_steps, chosen.eta, chosen.timesteps)
    except ValueError as error:
        raise UserError(str(error)) from None
    found = notices(manifest.recommended, prompts, chosen.camera_motion)
    return Request(chosen, prompts, negatives, images, streams, table, found)


def with_nearest_size(
    settings: GenerationSettings, images: Sequence[ImageSource], model: ModelSpec
) -> GenerationSettings:
    """``fit="auto"`` as the size whose shape is nearest to the photos', and ``crop``.

    Raises:
        UserError: a height or width is given beside it, a photo's size cannot be seen yet, or the photos of one call
            need different sizes.
    """
    if settings.height is not None or settings.width is not None:
        raise UserError("fit 'auto' chooses height and width: leave both out, or set fit to crop, pad or stretch.")
    sizes = model.sizes or ((model.height, model.width),)
    nearest = set()
    for source in images:
        height, width = image_size(source)
        nearest.add(min(sizes, key=lambda size: abs(math.log(size[1] / size[0] * height / width))))
    if len(nearest) > 1:
        shown = " and ".join(f"{width}x{height}" for height, width in sorted(nearest))
        raise UserError(f"the photos need the sizes {shown}: call once for each shape, or give height and width.")
    (chosen,) = nearest
    return replace(settings, fit="crop", height=chosen[0], width=chosen[1])


def _match(
    prompt: str | Sequence[str], negative: str | tuple[str, ...] | None, image: ImageSource | Sequence[ImageSource]
) -> tuple[list[str], list[str], list[ImageSource]]:
    """One negative prompt and one image (or a single image for all) per prompt."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    images: list[ImageSource] = list(image) if isinstance(image, list | tuple) else [image]  # type: ignore[list-item]
    if len(prompts) == 1:
        prompts = prompts * max(len(images), 1)
    negative = "" if negative is None else negative
    if not isinstance(negative, str | list | tuple):
        raise UserError(f"negative_prompt must be a text, or a list of texts, not {negative!r}.")
    negatives = [negative] * len(prompts) if isinstance(negative, str) else list(negative)
    if not prompts or not images:
        raise UserError("nothing to animate: give at least one image and one prompt.")
    for kind, texts in (("prompt", prompts), ("negative_prompt", negatives)):
        if not all(isinstance(text, str) for text in texts):
            raise UserError(f"{kind} must be a text, or a list of texts.")
        # Python decodes invalid UTF-8 on the command line to lone surrogates.
        if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
            raise UserError(f"{kind} holds bytes that are no text: type it again, in UTF-8.")
    if len(images) not in (1, len(prompts)):
        raise UserError(f"{len(images)} images for {len(prompts)} prompts: give one image, or one per prompt.")
    if len(negatives) != len(prompts):
        raise UserError(f"{len(negatives)} negative prompts for {len(prompts)} prompts: give one, or one per prompt.")
    return prompts, negatives, images
