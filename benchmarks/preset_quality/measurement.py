"""Generating with every variant at the same noise, timed."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...kernels.guidance import BRANCHES
from ...runtime.bundle.bundle import Bundle
from ...runtime.loop.batches import row_forwards
from ...runtime.media.read_video import Video
from ...runtime.pipeline import ImageToVideo
from ...runtime.request.settings import GenerationSettings, ResolvedSettings, StepCallback
from ...runtime.video import GeneratedVideos
from ..bench.forward_inputs import make_inputs, save_inputs, session_dims
from ..bench.subjects.published import PublishedForward
from ..bench.subjects_of_bundle import weights_options
from ..quality.evaluation import evaluate_set
from ..quality.media_set import MediaSet
from ..quality.networks.loader import Networks
from .outcome import Distance, Outcome, distance, latent_distance
from .variants import EXACT, FINE, Variant

# Of the videos alone; the others need originals or a set of real videos.
MEASURES = (
    "clipsim",
    "temporal_flickering",
    "subject_consistency",
    "subject_consistency_lite0",
    "motion_smoothness_dis",
    "dynamic_degree_dis",
    "flow_magnitude_dis",
    "camera_motion_agreement_dis",
)
_SEED_STEP = 1000
_PUBLISHED_ROUNDS = 5


@dataclass(frozen=True)
class Task:
    """What is animated, and how far guided; video n has the seed `seed` + n."""

    images: tuple[Path, ...]
    """One for all prompts, or one each."""
    prompts: tuple[str, ...]
    seed: int
    guidance_scale: float
    """Of the text; 1: off."""

    @property
    def photos(self) -> Path | list[Path]:
        """As the pipeline takes them."""
        return self.images[0] if len(self.images) == 1 else list(self.images)


@dataclass
class Measurement:
    """All outcomes, and what they are judged by."""

    outcomes: list[Outcome]
    other_seed: Distance
    """Between two exact runs of different noise."""
    published_unet_seconds: float | None
    """The published formulation's U-Net in torch eager, float32, for all videos together: a forward's median times
    how many a run has.
    """
    unavailable: dict[str, str]
    """Quality measures that cannot be had here, and why; or the published formulation."""


def measure_presets(
    bundle: Bundle,
    variants: Sequence[Variant],
    task: Task,
    *,
    checkpoint: str | None = None,
    threads: int | None = None,
    device: str = "cpu",
    precision: str | None = None,
    callback: StepCallback | None = None,
) -> Measurement:
    """Run every variant once, equal settings only once, each at the noise of the same seeds.

    Args:
        bundle: what makes the videos.
        variants: among them :data:`EXACT`, which all are compared with.
        task: photos, prompts, seeds, guidance.
        checkpoint: what the bundle was exported from, for the published formulation.
        callback: told of every step of every distinct run, and of another seed's exact one.

    Raises:
        UserError: anything a generation would refuse.
    """
    animate = ImageToVideo(bundle, threads=threads, device=device, precision=precision)
    everywhere: dict[str, Any] = {"seed": _seeds(task, 0), "guidance_scale_txt": task.guidance_scale}
    all_settings = [
        animate.check(task.photos, list(task.prompts), **variant.options, **everywhere).settings for variant in variants
    ]
    exact_settings = all_settings[[variant.name for variant in variants].index(EXACT)]
    # First, so that a checkpoint that does not fit is refused before the long measurement.
    published = _published_seconds(bundle, exact_settings, len(task.prompts), checkpoint, threads)
    # Loads every stage and touches every buffer, which none of the timed runs should pay.
    animate(task.photos, list(task.prompts), settings=all_settings[0], num_inference_steps=1)

    def generate(settings: GenerationSettings) -> GeneratedVideos:
        return animate(task.photos, list(task.prompts), settings=settings, callback=callback)

    made: dict[str, GeneratedVideos] = {}
    for settings in all_settings:
        key = _key(settings)
        if key not in made:
            made[key] = generate(settings)
    exact = made[_key(exact_settings)]
    other = generate(replace(exact_settings, seed=_seeds(task, _SEED_STEP)))
    by_name = dict(zip([variant.name for variant in variants], all_settings, strict=True))
    fine = made[_key(by_name[FINE])] if FINE in by_name else None

    networks, outcomes = Networks(), []
    unavailable: dict[str, str] = {}
    for variant, settings in zip(variants, all_settings, strict=True):
        videos = made[_key(settings)]
        measures, missing = _quality(videos, task, networks)
        unavailable |= missing
        outcomes.append(
            Outcome(
                variant.name,
                variant.options,
                variant.is_preset,
                seconds=videos.timings.total - videos.timings.get("load", 0.0),
                unet_seconds=videos.timings["unet"],
                row_forwards=row_forwards(settings, len(task.prompts), bundle.manifest),
                distance=distance(videos.latents, videos.frames, exact.latents, exact.frames),
                fine_relative_l2=None if fine is None else latent_distance(videos.latents, fine.latents),
                measures=measures,
            )
        )
    between_seeds = distance(other.latents, other.frames, exact.latents, exact.frames)
    if isinstance(published, str):
        return Measurement(outcomes, between_seeds, None, {**unavailable, "published formulation": published})
    for outcome in outcomes:
        outcome.speed_up_unet = published / outcome.unet_seconds
    return Measurement(outcomes, between_seeds, published, unavailable)


def steps_to_run(variants: Sequence[Variant]) -> int:
    """Denoising steps that :func:`measure_presets` will report."""
    distinct = {_key(GenerationSettings.from_options(variant.options)): variant for variant in variants}
    exact = [variant for variant in variants if variant.name == EXACT]
    return sum(int(variant.options["num_inference_steps"]) for variant in [*distinct.values(), *exact])


def _seeds(task: Task, shift: int) -> tuple[int, ...]:
    return tuple(task.seed + shift + number for number in range(len(task.prompts)))


def _key(settings: GenerationSettings) -> str:
    return json.dumps(asdict(settings), sort_keys=True)


def _quality(videos: GeneratedVideos, task: Task, networks: Networks) -> tuple[dict[str, float], dict[str, str]]:
    """The measures that can be had, and why the others cannot."""
    media = MediaSet(
        [
            Video(f"{number}-{prompt}", frames, videos.settings.fps, prompt)
            for number, (frames, prompt) in enumerate(zip(videos.frames, task.prompts, strict=True))
        ]
    )
    values, missing = {}, {}
    for result in evaluate_set(media, networks, MEASURES):
        if result.scores is not None:
            values[result.measure.name] = result.scores.value
        else:
            missing[result.measure.name] = result.reason or ""
    return values, missing


def _published_seconds(
    bundle: Bundle, settings: ResolvedSettings, videos: int, checkpoint: str | None, threads: int | None
) -> float | str:
    """U-Net seconds of a published run, from the median of single forwards at its batch; or why it was not timed."""
    weights = weights_options(bundle, checkpoint)
    if isinstance(weights, str):
        return weights
    branches = BRANCHES[settings.guidance]
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        dims: dict[str, Any] = {**session_dims(bundle.manifest), "rows": branches * videos}
        save_inputs(make_inputs(bundle.manifest, dims, settings.num_inference_steps), inputs)
        forward = PublishedForward(str(inputs), "fp32", threads=threads, **weights)
        try:
            forward.load(lambda share: None)
            seconds = [forward.run(number, lambda share: None)["seconds"] for number in range(_PUBLISHED_ROUNDS + 1)]
        except UserError as error:
            return str(error)
        except (RuntimeError, ValueError, KeyError):
            raise UserError(
                f"the checkpoint {checkpoint} is of another model than this bundle: give the one it was exported from."
            ) from None
    return settings.num_inference_steps * settings.autoregress_steps * statistics.median(seconds[1:])
