"""The settings of a call as one table: names, what is allowed, help and group. Settings are checked by it, and the
command line is made of it. No image library is needed: ``doctor`` runs where Pillow is damaged.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

from ...errors import UserError, shown
from ...kernels.frame_init import FILTER_KINDS
from ...kernels.noise import NOISE_KINDS
from ...kernels.schedulers import SCHEDULERS
from .presets import PRESETS

CAMERA_MOTIONS = ("pan_left", "pan_right", "zoom_in", "zoom_out")
FITS = ("crop", "pad", "stretch", "auto")
MAX_SIDE = 8192
PANELS = ("Basic", "Video", "Motion", "Guidance", "FrameInit", "Output", "Speed and memory", "GPU", "Other options")
"""Groups of the command line's help, in their order."""


@dataclass(frozen=True)
class Option:
    """A setting; `kind` is int or float (with a range), bool, str (to choose from), or checked elsewhere."""

    setting: str
    panel: str
    kind: Any
    help: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """Those accepted for it, the command line's first; empty: its own alone. Its own is accepted in any case."""

    def check(self, value: object, low: float | None = None, high: float | None = None) -> None:
        """Refuse a value that is not possible; the limits are those of the table unless given."""
        low, high = self.low if low is None else low, self.high if high is None else high
        if self.kind is int:
            whole(value, self.setting, int(low), int(high))
        elif self.kind is float:
            number(value, self.setting, low, high)
        elif self.kind is bool:
            check_flag(value, self.setting)
        elif self.choices:
            one_of(value, self.setting, self.choices)


# fmt: off
_TABLE = (
    Option("preset", "Basic", str,
           f"Scheduler, steps and guidance interval: {', '.join(PRESETS)} (exact: as published). Other options win "
           "over it; without it they are as the bundle recommends.", choices=tuple(PRESETS)),
    Option("negative_prompt", "Basic", list[str], "What to lead away from."),
    Option("num_inference_steps", "Basic", int, "Denoising steps", 1, names=("steps", "num_steps")),
    Option("scheduler", "Basic", str, f"{', '.join(SCHEDULERS)} (for distilled models)", choices=SCHEDULERS,
           names=("scheduler", "sampler")),
    Option("timesteps", "Basic", None, "Timesteps of the noise schedule instead of a number of steps, as 999,600,200."),
    Option("eta", "Basic", float, "0: deterministic DDIM, 1: DDPM; for ddim.", 0, 1),
    Option("seed", "Basic", list[int], "One, or one per video; drawn and shown if absent.",
           names=("seed", "generator")),
    Option("num_videos_per_prompt", "Video", int, "Videos for each prompt.", 1, 1000,
           names=("videos_per_prompt", "num_images_per_prompt")),
    Option("autoregress_steps", "Video", int, "Clips of a long video, each going on from the last frame before.",
           1, 1000, names=("clips", "num_clips")),
    Option("height", "Video", int, "Pixels; as the bundle was exported.", 1, MAX_SIDE),
    Option("width", "Video", int, "Pixels; as the bundle was exported.", 1, MAX_SIDE),
    Option("video_length", "Video", int, "Frames of a clip; as the bundle was exported.", 1,
           names=("frames", "num_frames")),
    Option("chain", "Video", None, "How clips join: last (the next begins with the last frame) or overlap:N (N frames "
           "blended)"),
    Option("fit", "Video", str, "Photo of another aspect than the video: crop, pad (black bars), stretch, or auto: the "
           "bundle's nearest size, then crop.", choices=FITS),
    Option("frame_stride", "Motion", int, "Larger moves more", 1, 1000, names=("frame_stride", "stride")),
    Option("noise_sampling_method", "Motion", str, f"{', '.join(NOISE_KINDS)}.", choices=NOISE_KINDS, names=("noise",)),
    Option("noise_alpha", "Motion", float, "How much noise frames share.", 0, 1000),
    Option("camera_motion", "Motion", str, f"{', '.join(CAMERA_MOTIONS)}.", choices=CAMERA_MOTIONS),
    Option("guidance_scale_txt", "Guidance", float, "Text guidance, 1: off", -1000, 1000, names=("guidance_scale",)),
    Option("guidance_scale_img", "Guidance", float,
           "First-frame guidance; above 1 it is on, at half as much work again", -1000, 1000,
           names=("image_guidance_scale",)),
    Option("guidance_rescale", "Guidance", float, "0 (off) to 1", 0, 1),
    Option("guidance_interval", "Guidance", None, "Shares of the steps between which guidance acts"),
    Option("guidance_batch", "Guidance", str,
           "joint: a step's branches at once; split: one after the other, in less memory.", choices=("joint", "split")),
    Option("use_frameinit", "FrameInit", bool, "Low frequencies of the photo in the first noise.",
           names=("frameinit",)),
    Option("frameinit_noise_level", "FrameInit", int, "Timestep; as the bundle says (850).", 0),
    Option("frameinit_filter", "FrameInit", str, f"{', '.join(FILTER_KINDS)}.", choices=FILTER_KINDS),
    Option("frameinit_d_s", "FrameInit", float, "Spatial stop frequency, 0 to 1.", 0, 1),
    Option("frameinit_d_t", "FrameInit", float, "Temporal stop frequency, 0 to 1.", 0, 1),
    Option("frameinit_order", "FrameInit", int, "Order of the butterworth filter.", 1, 100),
    Option("fps", "Output", float, "Frames a second in the file.", 0.01, 1000, names=("fps", "frame_rate")),
    Option("cache_interval", "Speed and memory", int,
           "The whole U-Net every so many steps; needs a bundle with a cache branch.", 1, 1000),
)
# fmt: on
OPTIONS: dict[str, Option] = {option.setting: option for option in _TABLE}
ALIASES: dict[str, str] = {name: option.setting for option in _TABLE for name in option.names if name != option.setting}
"""Other name -> setting."""


def canonical_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under the settings' own names; a ``torch.Generator`` as the seed that it was made with.

    Raises:
        UserError: a name that is not known (the nearest one is proposed), or two names of one setting.
    """
    known = list(OPTIONS)
    values: dict[str, Any] = {}
    given: dict[str, str] = {}
    for name, value in options.items():
        setting = ALIASES.get(name, name)
        if setting not in known:
            near = similar_names(name, known)
            advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
            raise UserError(f"option {name} is unknown: {advice}")
        if setting in given:
            raise UserError(f"{given[setting]} and {name} are two names of one option: give one of them.")
        given[setting] = name
        values[setting] = _seed_of(value) if name == "generator" else value
    return values


def similar_names(name: str, known: Iterable[str]) -> list[str]:
    """The names, other ones included, that `name` may be a misspelling of; the nearest first."""
    known = list(known)
    names = [*known, *(other for other, setting in ALIASES.items() if setting in known)]
    return get_close_matches(name, names, n=3)


def command_name(setting: str) -> str:
    """What the command line calls a setting, as ``--steps``; any other name as it is."""
    names = OPTIONS[setting].names if setting in OPTIONS else ()
    return "--" + next(iter(names), setting).replace("_", "-")


def whole(value: object, name: str, low: int, high: int) -> None:
    """Refuse anything but a whole number in low..high."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not low <= int(value) <= high:
        raise UserError(f"{name} {shown(value)} is not possible: give a whole number from {low} to {high}.")


def number(value: object, name: str, low: float, high: float) -> float:
    """Refuse anything but a finite number in low..high; gives it as Python's own float, whatever type it had."""
    try:
        converted = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an int or a fraction beyond any float
        converted = math.nan
    if not low <= converted <= high:
        raise UserError(f"{name} {shown(value)} is not possible: give a number from {low:g} to {high:g}.")
    return converted


def one_of(value: object, name: str, allowed: tuple[str, ...]) -> None:
    """Refuse anything but one of the names."""
    if not isinstance(value, str) or value not in allowed:
        raise UserError(f"{name} {shown(value)} is unknown: choose {', '.join(allowed)}.")


def check_flag(value: object, name: str) -> None:
    """Refuse what is not True or False."""
    if not isinstance(value, bool):
        raise UserError(f"{name} {shown(value)} is not possible: give True or False.")


def check_fps(value: object) -> float:
    """Refuse a frame rate that no file or player takes."""
    return number(value, "fps", OPTIONS["fps"].low, OPTIONS["fps"].high)


def check_threads(threads: object) -> None:
    """Refuse anything but None, or 1 to the number of logical processors."""
    most = os.cpu_count() or 1
    try:
        if threads is not None:
            whole(threads, "threads", 1, most)
    except UserError as error:
        raise UserError(f"{str(error)[:-1]}, the logical processors here.") from None


def _seed_of(generator: Any) -> Any:
    """The seeds of torch generators, without torch; None stays None."""
    if generator is None:
        return None
    if isinstance(generator, list | tuple):
        return tuple(_seed_of(one) for one in generator)
    initial_seed = getattr(generator, "initial_seed", None)
    if not callable(initial_seed):
        raise UserError(
            f"generator must be a torch.Generator or a list of them, not {type(generator).__name__}: "
            "pass a number as seed=7."
        )
    return int(initial_seed())
