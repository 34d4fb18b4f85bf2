"""Presets: how many steps, of which scheduler, guided where. One table, for the library and the command line.

``consisti2v bench --quality`` measures each against ``exact``: seconds, U-Net rows, distance at the same noise beside
the distance of another seed. A preset stays in the table only where its loss is clearly smaller than that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import UserError

PRESETS: dict[str, dict[str, Any]] = {
    # The published pipeline: 50 DDIM steps, guided in each.
    "exact": {"scheduler": "ddim", "num_inference_steps": 50, "guidance_interval": (0.0, 1.0)},
    # Three tenths less work. The same solver: 50 DDIM steps are themselves away from what they approximate, so that a
    # better one comes closer to that and further from the published video. docs/presets.md has the figures.
    "balanced": {"scheduler": "ddim", "num_inference_steps": 35, "guidance_interval": (0.0, 1.0)},
}


def with_preset(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the key ``preset`` replaced by what it stands for; options that are named beside it win.

    Raises:
        UserError: an unknown preset.
    """
    given = dict(options)
    name = given.pop("preset", None)
    if name is None:
        return given
    if not isinstance(name, str) or name not in PRESETS:
        raise UserError(f"preset {name!r} is unknown: choose {', '.join(PRESETS)}.")
    return {**PRESETS[name], **given}
