"""``--config FILE.json``: settings of a generation from a file, under those of the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..presets import with_preset
from ..settings import GenerationSettings

EXAMPLE = Path(__file__).parents[2] / "assets" / "example_settings.json"
_MAX_BYTES = 2**20


def with_config(file: Path, named: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a file, with those `named` on the command line in their place.

    The file holds a JSON object of :class:`GenerationSettings` fields and, where wanted, a ``preset``. A preset on the
    command line wins over the file's single settings too.

    Raises:
        UserError: no such file, no JSON object, or a name that is no setting.
    """
    settings = _read(file)
    try:
        GenerationSettings.from_options(settings)
    except UserError as error:
        raise UserError(f'--config "{file}": {error}') from None
    if "preset" in named:
        settings |= with_preset({"preset": named["preset"]})
        settings.pop("preset", None)
    return settings | {name: value for name, value in named.items() if name != "preset"}


def _read(file: Path) -> dict[str, Any]:
    advice = f'give a JSON file of settings, such as "{EXAMPLE}".'
    if not file.exists():
        raise UserError(f'--config "{file}" does not exist: {advice}')
    if not file.is_file():
        raise UserError(f'--config "{file}" is no regular file: {advice}')
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise UserError(f'--config "{file}" is larger than 1 MiB: {advice}')
        settings = json.loads(data.decode("utf-8-sig"))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f'--config "{file}" cannot be read ({error.strerror}): check its permissions.') from None
    except (ValueError, RecursionError) as error:
        raise UserError(f'--config "{file}" is no valid JSON ({error}): {advice}') from None
    if not isinstance(settings, dict):
        raise UserError(f'--config "{file}" holds no JSON object: {advice}')
    return settings
