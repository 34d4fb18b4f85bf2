"""The settings of a generation as inputs of a node, made from the table that the command line is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from comfy_api.latest import io

from ..errors import UserError
from ..runtime.request.option_table import OPTIONS, Option
from ..runtime.request.settings import GenerationSettings

AUTOMATIC = "bundle"
"""A choice that is left to the bundle; of numbers, -1 is."""
_ELSEWHERE = ("negative_prompt", "seed", "camera_motion", "num_videos_per_prompt")
_LISTS = {"timesteps": int, "guidance_interval": float}
_LARGEST = 10_000
_DEFAULTS = {field.name: field.default for field in fields(GenerationSettings)}


def setting_inputs() -> list[Any]:
    """An input for every setting but those that have one of their own kind."""
    return [_input(option) for option in OPTIONS.values() if option.setting not in _ELSEWHERE]


def _input(option: Option) -> Any:
    name, default, help_text = option.setting, _DEFAULTS[option.setting], option.help
    if option.choices:
        named = [AUTOMATIC, *option.choices] if default is None else list(option.choices)
        return io.Combo.Input(name, options=named, default=default or AUTOMATIC, tooltip=help_text)
    if option.kind is bool:
        return io.Boolean.Input(name, default=default, tooltip=help_text)
    if option.kind in (int, float):
        kind, step = (io.Int, 1) if option.kind is int else (io.Float, 0.01)
        low = option.kind(max(option.low, -_LARGEST))
        if default is None:
            low, help_text = min(low, -1) if low > -1 else -1, f"{help_text.rstrip('.')}. -1: as the bundle recommends."
        high = option.kind(min(option.high, _LARGEST))
        value = -1 if default is None else default
        return kind.Input(name, default=option.kind(value), min=low, max=high, step=step, tooltip=help_text)
    return io.String.Input(name, default=default or "", tooltip=f"{help_text.rstrip('.')}; empty: as usual.")


def settings_from(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the inputs say, as options of a call; what is left to the bundle is left out.

    Raises:
        UserError: a list that holds something else than numbers.
    """
    options = {}
    for name, value in values.items():
        if value in (AUTOMATIC, "") or (_DEFAULTS[name] is None and value == -1):
            continue
        if name in _LISTS:
            try:
                value = tuple(_LISTS[name](part) for part in str(value).split(","))
            except ValueError:
                raise UserError(f"{name} is {str(value)[:80]!r}: give numbers with commas between them.") from None
        options[name] = value
    return options
