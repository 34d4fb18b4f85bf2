"""A bundle's own presets, in a file beside ``bundle.json`` that ``consisti2v tune`` writes.

The manifest does not record it, so that versions of this program that do not know it read the bundle all the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...kernels.ddim import SchedulerConfig
from ...kernels.schedulers import step_table
from ..files.guarded_read import PRESETS as KIND
from ..files.guarded_read import read_json_object
from ..request.presets import PRESET_SETTINGS, PRESETS

TUNED = "presets.json"


def read_tuned(file: Path, unet_sha256: str, scheduler: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The presets of a file, checked; none where there is no file.

    Args:
        file: JSON object with ``unet_sha256`` and ``presets``, settings by preset.
        unet_sha256: of the bundle's U-Net.
        scheduler: the bundle's noise schedule.

    Raises:
        UserError: it cannot be read, is of another U-Net, or names what is not possible.
    """
    if not file.exists():
        return {}
    content = read_json_object(file, KIND)
    try:
        if content.get("unet_sha256") != unet_sha256:
            raise ValueError("was made for another U-Net")
        presets = content.get("presets")
        if not isinstance(presets, dict) or not all(isinstance(preset, dict) for preset in presets.values()):
            raise ValueError("holds no presets")
        config = SchedulerConfig.from_dict(scheduler)
        return {name: _checked(name, preset, config) for name, preset in presets.items()}
    except (TypeError, ValueError) as error:
        raise UserError(f"{file} {error}: {KIND.remedy}.") from None


def tuned_text(unet_sha256: str, presets: Mapping[str, Mapping[str, Any]]) -> str:
    """What :func:`read_tuned` reads."""
    return json.dumps({"unet_sha256": unet_sha256, "presets": presets}, indent=1) + "\n"


def _checked(name: str, preset: dict[str, Any], config: SchedulerConfig) -> dict[str, Any]:
    if name not in PRESETS or set(preset) - set(PRESET_SETTINGS):
        raise ValueError(f"holds a preset {name[:40]!r} that is unknown, or unknown settings of it")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in preset.items()}
    steps, timesteps = values.get("num_inference_steps"), values.get("timesteps")
    if type(steps) is not int or any(type(timestep) is not int for timestep in timesteps or ()):
        raise ValueError(f"gives preset {name} steps that are no whole numbers")
    try:
        step_table(values["scheduler"], config, steps, timesteps=timesteps)
    except (KeyError, ValueError) as error:
        raise ValueError(f"gives preset {name} steps that are not possible ({error})") from None
    return values
