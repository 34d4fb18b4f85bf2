"""The published values of the settings that a bundle may recommend otherwise, and presets of some of them.

``consisti2v bench --quality`` measures each preset against ``exact``: seconds, U-Net rows, distance at the same noise
beside the distance of another seed. A preset stays here only where its loss is clearly smaller than that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import UserError

PUBLISHED: dict[str, Any] = {
    "guidance_scale_txt": 7.5,
    "guidance_scale_img": 1.0,
    "guidance_rescale": 0.0,
    "guidance_interval": (0.0, 1.0),
    "num_inference_steps": 50,
    "scheduler": "ddim",
    "frame_stride": 3,
}
"""ConsistI2V's inference settings (arXiv:2402.04324), for what neither the call nor the bundle says."""

PRESETS: dict[str, dict[str, Any]] = {
    # The published pipeline: 50 DDIM steps, guided in each. How far guidance goes is the model's own.
    "exact": {name: PUBLISHED[name] for name in ("scheduler", "num_inference_steps", "guidance_interval")},
    # Three tenths less work. The same solver: 50 DDIM steps are themselves away from what they approximate, so that a
    # better one comes closer to that and further from the published video. docs/presets.md has the figures.
    "balanced": {"scheduler": "ddim", "num_inference_steps": 35, "guidance_interval": (0.0, 1.0)},
}


def with_preset(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with ``preset`` replaced by what it stands for; options beside it win, unless they are None.

    Raises:
        UserError: an unknown preset.
    """
    given = dict(options)
    name = given.pop("preset", None)
    if name is None:
        return given
    if not isinstance(name, str) or name not in PRESETS:
        raise UserError(f"preset {name!r} is unknown: choose {', '.join(PRESETS)}.")
    return given | {option: value for option, value in PRESETS[name].items() if given.get(option) is None}
