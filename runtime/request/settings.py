"""Everything a generation can be told, with the published defaults, checked in one place."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

from ...errors import UserError, shown
from ...kernels.guidance import GuidanceMode, guidance_mode, guided_steps
from ..bundle.manifest import Manifest, RecommendedSettings
from ..files.guarded_read import parse_json
from .option_table import MAX_SIDE, OPTIONS, canonical_options, number
from .presets import PRESET_SETTINGS, PRESETS, PUBLISHED, Presets, with_preset


@dataclass(frozen=True)
class GenerationSettings:
    """Options of one call, named as in the published pipeline. None means "as the bundle was exported for, or as it
    recommends"; where it recommends nothing, the published value holds. :meth:`resolved` fills all of them in.
    """

    preset: str | None = None
    """exact, balanced or fast: stands for scheduler, steps or timesteps, and guidance interval; see docs/presets.md."""
    negative_prompt: str | tuple[str, ...] | None = ""
    """Text the guidance leads away from; one, or one per prompt. None: no text."""
    num_inference_steps: int | None = None
    """Published: 50."""
    scheduler: str | None = None
    """ddim (published), dpmpp_2m, dpmpp_2m_karras, deis, deis_exponential, unipc, euler, or lcm (distilled models)."""
    timesteps: tuple[int, ...] | None = None
    """Of the noise schedule, one a step, highest first, instead of the bundle's spacing of num_inference_steps."""
    guidance_scale_txt: float | None = None
    """Text guidance; 1 switches it off. Published: 7.5."""
    guidance_scale_img: float | None = None
    """First-frame guidance; above 1 the U-Net runs three branches instead of two. Published: 1."""
    guidance_rescale: float | None = None
    """0 (off, published) to 1: pulls the guided prediction's spread back (Lin et al. 2023, arXiv:2305.08891)."""
    guidance_interval: tuple[float, float] | None = None
    """Share of the steps in which guidance acts: (0.2, 0.8) of 50 is steps 10 to 39, counted from 0. In the others the
    prompt's branch runs alone (Kynkäänniemi et al. 2024, arXiv:2404.07724). Published: (0, 1).
    """
    guidance_batch: str = "joint"
    """joint: a step's branches in one U-Net call where the batch allows; split: one by one, in less memory."""
    cache_interval: int = 1
    """Every how many steps the whole U-Net runs; shallow ones between reuse its deep features. Needs a cache branch."""
    eta: float = 0.0
    """0 deterministic, 1 DDPM; for the ddim scheduler."""
    seed: int | tuple[int, ...] | None = None
    """As ``torch.manual_seed`` in the published pipeline; one per video, or one for all. None draws one."""
    frame_stride: int | None = None
    """Frames of the source video between two frames: larger moves more. Published: 3."""
    noise_sampling_method: str = "pyoco_mixed"
    noise_alpha: float = 1.0
    """How much noise the frames share."""
    use_frameinit: bool = True
    frameinit_noise_level: int | None = None
    frameinit_filter: str | None = None
    frameinit_d_s: float | None = None
    """Spatial stop frequency of the low-pass filter, 0..1."""
    frameinit_d_t: float | None = None
    """Temporal stop frequency of the low-pass filter, 0..1."""
    frameinit_order: int | None = None
    """Order of the butterworth filter."""
    camera_motion: str | None = None
    """pan_left, pan_right, zoom_in or zoom_out: FrameInit starts from a moving crop of the photo instead of a still."""
    num_videos_per_prompt: int = 1
    autoregress_steps: int = 1
    """Clips of a long video."""
    chain: str = "last"
    """How clips join. last (published): a clip begins with the last frame of the one before. overlap:N: it begins N
    frames before the end, and those N frames fade from one clip to the next, in latents.
    """
    height: int | None = None
    width: int | None = None
    video_length: int | None = None
    """Frames of one clip, the first included."""
    fps: float = 8.0
    fit: str = "crop"
    """Photo of another aspect than the video: crop (published) cuts its sides off, pad adds black bars, stretch
    distorts it; auto takes the size of the bundle whose shape is nearest to the photo's, and crops to that.
    """

    @classmethod
    def from_options(cls, options: Mapping[str, Any], base: GenerationSettings | None = None) -> GenerationSettings:
        """Settings from keyword arguments, under the names of :mod:`.option_table`; lists become tuples.

        What a ``preset`` stands for is not kept from `base`, nor are its timesteps where a number of steps or a
        scheduler is given.

        Raises:
            UserError: an unknown name (the nearest known one is proposed), two names of one option, or an
                unknown preset.
        """
        options = canonical_options(options)
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
        if values.get("preset") is not None:
            OPTIONS["preset"].check(values["preset"])
            values = dict.fromkeys(PRESET_SETTINGS) | values
        elif values.get("num_inference_steps") is not None or values.get("scheduler") is not None:
            values = {"timesteps": None} | values
        elif values.get("timesteps") is not None:
            values = {"num_inference_steps": None} | values
        return replace(base or cls(), **values)

    def resolved(self, manifest: Manifest, presets: Presets = PRESETS) -> ResolvedSettings:
        """The settings with the bundle's values filled in, every one checked.

        Args:
            manifest: the bundle's.
            presets: the bundle's.

        Raises:
            UserError: a value that is not possible, or that this bundle was not exported for.
        """
        model = manifest.model
        values = {f.name: _plain_value(getattr(self, f.name)) for f in fields(GenerationSettings)}
        values = with_preset(values, presets)
        if values["num_inference_steps"] is None and isinstance(values["timesteps"], tuple):
            values["num_inference_steps"] = len(values["timesteps"])
        defaults: dict[str, Any] = {
            **{name: getattr(manifest.recommended, name) for name in PUBLISHED},
            **{f"frameinit_{f.name}": getattr(manifest.frame_init, f.name) for f in fields(manifest.frame_init)},
            "negative_prompt": "",
            "height": model.height,
            "width": model.width,
            "video_length": model.frames,
        }
        for known in (defaults, PUBLISHED):
            values |= {name: value for name, value in known.items() if values[name] is None}
        settings = ResolvedSettings(**values)
        steps = int(manifest.scheduler.get("num_train_timesteps", 1000))
        check_listed(settings.timesteps, steps)
        check_sampling(settings, steps)
        limits = {"frameinit_noise_level": (0, steps - 1)}
        limits |= dict.fromkeys(("height", "width"), (model.vae_scale_factor, MAX_SIDE))
        for name, option in OPTIONS.items():
            # The rest has a check of its own, or may be None.
            if name not in (*PUBLISHED, "video_length") and values[name] is not None:
                option.check(values[name], *limits.get(name, ()))
        settings._check_together(manifest)
        return settings


@dataclass(frozen=True, kw_only=True)
class ResolvedSettings(GenerationSettings):
    """Settings of one call with nothing left open; made by :meth:`GenerationSettings.resolved`."""

    num_inference_steps: int
    scheduler: str
    guidance_scale_txt: float
    guidance_scale_img: float
    guidance_rescale: float
    guidance_interval: tuple[float, float]
    frame_stride: int
    frameinit_noise_level: int
    frameinit_filter: str
    frameinit_d_s: float
    frameinit_d_t: float
    frameinit_order: int
    height: int
    width: int
    video_length: int

    @property
    def guidance(self) -> GuidanceMode:
        return guidance_mode(self.guidance_scale_txt, self.guidance_scale_img)

    @property
    def overlap(self) -> int:
        """Frames that neighbouring clips share; 1: the last frame of one is the first of the next."""
        return 1 if self.chain == "last" else int(self.chain.partition(":")[2])

    @property
    def total_frames(self) -> int:
        """Of one video, all clips joined."""
        return self.video_length + (self.autoregress_steps - 1) * (self.video_length - self.overlap)

    @property
    def guided_steps(self) -> range:
        """The steps, counted from 0, in which guidance acts."""
        return guided_steps(*self.guidance_interval, self.num_inference_steps)

    def _check_together(self, manifest: Manifest) -> None:
        """What fits neither the other settings nor this bundle."""
        model = manifest.model
        for name in ("frameinit_d_s", "frameinit_d_t"):
            # Their squares and their quotient have to be numbers.
            if 0 < getattr(self, name) < 1e-6:
                raise UserError(f"{name} {getattr(self, name)} is not possible: give 0, or a number from 1e-06 to 1.")
        if not isinstance(self.video_length, Integral) or self.video_length != model.frames:
            raise UserError(
                f"video_length {shown(self.video_length)} does not fit: this bundle makes clips of {model.frames} "
                "frames; export a model of another length, or set autoregress_steps for a longer video."
            )
        multiple = model.dynamic_size_multiple
        for name, size, exported in (("height", self.height, model.height), ("width", self.width, model.width)):
            if size % model.vae_scale_factor:
                raise UserError(f"{name} {size} is not a multiple of {model.vae_scale_factor}.")
            if multiple is None and size != exported:
                raise UserError(
                    f"{name} {size} does not fit: this bundle makes {model.height}x{model.width} (height x width); "
                    f"export again with --{name} {size}, or with --dynamic."
                )
            if multiple is not None and size % multiple:
                raise UserError(f"{name} {size} does not fit: this bundle takes multiples of {multiple} pixels.")
        if self.guidance_batch == "split" and model.rows is not None and model.rows > 1:
            raise UserError(
                f"guidance_batch 'split' does not fit: this bundle's U-Net always runs {model.rows} rows at once; "
                "leave it at 'joint', or export with --guidance any or none."
            )
        if self.cache_interval > 1 and model.cache_branch is None:
            raise UserError(
                f"cache_interval {self.cache_interval} does not fit: this bundle has no shallow U-Net; leave it at 1, "
                "or export with --cache-branch 0."
            )
        self._check_chain()
        if self.camera_motion is not None:
            self._check_camera_motion(self.camera_motion)

    def _check_chain(self) -> None:
        most = self.video_length - 1
        kind, colon, digits = self.chain.partition(":") if isinstance(self.chain, str) else ("", "", "")
        count = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 6 else 0
        if (kind, colon) != ("last", "") and not (kind == "overlap" and 2 <= count <= most):
            raise UserError(
                f"chain {shown(self.chain)} is not possible: give last, or overlap:N with N from 2 to {most} frames."
            )

    def _check_camera_motion(self, motion: str) -> None:
        if not self.use_frameinit:
            raise UserError("camera_motion acts through FrameInit: leave use_frameinit on, or drop camera_motion.")
        if self.autoregress_steps > 1:
            raise UserError("camera_motion is for one clip: set autoregress_steps to 1, or drop camera_motion.")
        if motion.startswith("pan") and self.fit != "crop":
            raise UserError(f"camera_motion {motion!r} moves over the whole photo: leave fit at crop, not {self.fit}.")


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """``name=value`` texts as options of a call; values as JSON where they are, else as text.

    Raises:
        UserError: a text without "=".
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"setting {pair!r} is not name=value: write for example frame_stride=5.")
        try:
            options[name.strip()] = parse_json(value)
        except ValueError:
            options[name.strip()] = value
    return options


def check_listed(timesteps: Any, train_steps: int) -> None:
    """Refuse anything but None, or falling whole numbers below `train_steps`."""
    if timesteps is None:
        return
    whole = isinstance(timesteps, tuple) and all(type(timestep) is int for timestep in timesteps)
    falling = whole and all(later < earlier for earlier, later in itertools.pairwise(timesteps))
    if not falling or not timesteps or not train_steps > timesteps[0] >= timesteps[-1] >= 0:
        raise UserError(
            f"timesteps {shown(timesteps)} are not possible: give each once, highest first, from {train_steps - 1} "
            "to 0."
        )


def check_sampling(chosen: ResolvedSettings | RecommendedSettings, train_steps: int) -> None:
    """Refuse impossible values of the settings in :data:`PUBLISHED`, those that a bundle may recommend.

    Args:
        chosen: none of them is None.
        train_steps: of the noise schedule; no run has more.
    """
    steps, interval = chosen.num_inference_steps, chosen.guidance_interval
    assert steps is not None
    for name in PUBLISHED:
        OPTIONS[name].check(getattr(chosen, name), high=train_steps if name == "num_inference_steps" else None)
    if not isinstance(interval, tuple) or len(interval) != 2:
        raise UserError(
            f"guidance_interval {shown(interval)} is not possible: give two numbers, first and last share of the "
            "steps, as (0.2, 0.8)."
        )
    for value in interval:
        number(value, "guidance_interval", 0, 1)
    start, end = interval
    if start >= end:
        raise UserError(
            f"guidance_interval {start:g} to {end:g} is empty: give a start below the end, or switch guidance off with "
            "guidance_scale_txt 1."
        )
    if not guided_steps(start, end, steps):
        raise UserError(
            f"guidance_interval {start:g} to {end:g} holds none of the {steps} steps: widen it, or switch guidance off "
            "with guidance_scale_txt 1."
        )


def _plain_value(value: Any) -> Any:
    """Lists as tuples, and numbers of NumPy and ``fractions`` as Python's own, which every library takes."""
    if isinstance(value, list | tuple):
        return tuple(map(_plain_value, value))
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    try:
        return int(value) if isinstance(value, Integral) else float(value)
    except OverflowError:  # out of every range
        return value


StepCallback = Callable[["StepProgress"], object]
"""Returns False (NumPy's too) to stop the call; anything else, None and 0 included, goes on."""
FramesCallback = Callable[[int, int, Any], None]


@dataclass(frozen=True, eq=False)
class StepProgress:
    """What a step callback is told, after the step."""

    clip: int
    clips: int
    step: int
    steps: int
    timestep: int
    latents: Any = field(repr=False)
    """float32 [videos, c, frames - 1, h, w] after the step; belongs to the loop, copy it to keep it."""
