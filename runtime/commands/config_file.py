"""``--config FILE.json``: settings of a generation from a file, under those of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...locations import ASSETS
from ..files.guarded_read import CONFIG, read_json_object
from ..request.option_names import canonical_options
from ..request.presets import with_preset
from ..request.settings import GenerationSettings

EXAMPLE = ASSETS / "example_settings.json"
_KIND = CONFIG(f'give a JSON file of settings, such as "{EXAMPLE}"')


def with_config(file: Path, named: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a file, with those `named` on the command line in their place.

    The file holds a JSON object of :class:`GenerationSettings` fields and, where wanted, a ``preset``. A preset on the
    command line wins over the file's single settings too.

    Raises:
        UserError: no such file, no JSON object, or a name that is no setting.
    """
    settings = read_json_object(file, _KIND, f'--config "{file}"')
    try:
        # Under the settings' own names, so that those of the command line can take their places.
        settings = canonical_options(settings, [*(field.name for field in fields(GenerationSettings)), "preset"])
        GenerationSettings.from_options(settings)
    except UserError as error:
        raise UserError(f'--config "{file}": {error}') from None
    if "preset" in named:
        settings |= with_preset({"preset": named["preset"]})
        settings.pop("preset", None)
    return settings | {name: value for name, value in named.items() if name != "preset"}
