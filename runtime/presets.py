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
    # Half the steps by a second-order solver, guided in each.
    "balanced": {"scheduler": "dpmpp_2m", "num_inference_steps": 25, "guidance_interval": (0.0, 1.0)},
    # A quarter of the steps; the last fifth, where guidance changes details alone, runs the prompt's branch only.
    "fast": {"scheduler": "dpmpp_2m", "num_inference_steps": 12, "guidance_interval": (0.0, 0.8)},
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
