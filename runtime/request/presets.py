"""The published values of the settings that a bundle may recommend otherwise, and presets of some of them.

``consisti2v tune`` finds a bundle's own ``fast`` and ``balanced``; those here hold for bundles without. The rule and
what was measured: docs/presets.md.
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

Presets = Mapping[str, Mapping[str, Any]]

PRESETS: dict[str, dict[str, Any]] = {
    # The published pipeline: 50 DDIM steps, guided in each. How far guidance goes is the model's own.
    "exact": {name: PUBLISHED[name] for name in ("scheduler", "num_inference_steps", "guidance_interval")},
    # At most half as far from the converged trajectory as `exact`, and at most as far.
    "balanced": {"scheduler": "deis_exponential", "num_inference_steps": 9, "guidance_interval": (0.0, 1.0)},
    "fast": {"scheduler": "deis_exponential", "num_inference_steps": 7, "guidance_interval": (0.0, 1.0)},
}
PRESET_SETTINGS = ("scheduler", "num_inference_steps", "timesteps", "guidance_interval")
"""What a preset may say."""


def with_preset(settings: Mapping[str, Any], presets: Presets) -> dict[str, Any]:
    """Settings by name with what ``preset`` stands for in the place of those that are None.

    Timesteps belong to the scheduler and the number of steps that a preset names beside them: where the call names
    another of these, the preset's timesteps are left out.

    Raises:
        UserError: an unknown preset.
    """
    values = dict(settings)
    name = values["preset"]
    if name is None:
        return values
    if name not in presets:
        raise UserError(f"preset {name!r} is unknown: choose {', '.join(presets)}.")
    preset = dict(presets[name])
    steps = ("scheduler", "num_inference_steps", "timesteps")
    if any(values[key] not in (None, preset.get(key)) for key in steps):
        preset.pop("timesteps", None)
    if values["timesteps"] is not None:
        preset.pop("num_inference_steps", None)
    return values | {key: value for key, value in preset.items() if values[key] is None}
