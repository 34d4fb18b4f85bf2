"""The names of a call's options: the settings' own, and the other ones that library and command line accept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from ...errors import UserError

OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "num_inference_steps": ("steps", "num_steps"),
    "guidance_scale_txt": ("guidance_scale",),
    "guidance_scale_img": ("image_guidance_scale",),
    "video_length": ("frames", "num_frames"),
    "autoregress_steps": ("clips", "num_clips"),
    "num_videos_per_prompt": ("videos_per_prompt", "num_images_per_prompt"),
    "noise_sampling_method": ("noise",),
    "use_frameinit": ("frameinit",),
    "scheduler": ("scheduler", "sampler"),
    "frame_stride": ("frame_stride", "stride"),
    "fps": ("fps", "frame_rate"),
    "seed": ("seed", "generator"),
}
"""Setting -> the names accepted for it. The first one is the command line's; a setting that is not listed has the same
name in both.
"""

ALIASES: dict[str, str] = {
    other: setting for setting, others in OTHER_NAMES.items() for other in others if other != setting
}
"""Other name -> setting."""


def canonical_options(options: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Options under the settings' own names; a ``torch.Generator`` as the seed that it was made with.

    Args:
        known: the settings' names, and what else is accepted.

    Raises:
        UserError: a name that is not known (the nearest one is proposed), or two names of one setting.
    """
    known = list(known)
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
    """What the command line calls a setting, as ``--steps``."""
    return "--" + OTHER_NAMES.get(setting, (setting,))[0].replace("_", "-")


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
