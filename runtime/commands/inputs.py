"""What a generation on the command line reads: photos (``-`` is standard input) and ``--config FILE.json``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import UserError, first_line
from ...locations import ASSETS
from ..files.guarded_read import CONFIG, read_json_object
from ..media.image import load_image
from ..request.option_table import canonical_options
from ..request.presets import PRESET_SETTINGS
from ..request.settings import GenerationSettings

STANDARD_INPUT = Path("-")
MAX_BYTES = 256 * 2**20
EXAMPLE = ASSETS / "example_settings.json"


def read_photos(images: Sequence[Path]) -> list[Image.Image]:
    """Every photo as an RGB image; ``-`` stands for the one photo in standard input and may be repeated.

    Raises:
        UserError: as ``load_image``; standard input that is a terminal, empty, no photo or over 256 MiB.
    """
    piped = _read_standard_input() if STANDARD_INPUT in images else None
    return [piped if piped is not None and image == STANDARD_INPUT else load_image(image) for image in images]


def _read_standard_input() -> Image.Image:
    # None: the process was started without one.
    if sys.stdin is None or sys.stdin.isatty():
        state = "closed" if sys.stdin is None else "a terminal"
        raise UserError(
            f"--image - reads the photo from standard input, which is {state}: pipe one in, as in "
            "'curl URL | consisti2v demo --image -', or give a file (./- for one that has this name)."
        )
    try:
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(
            f"standard input cannot be read ({error.strerror or first_line(error)}): pipe a photo in, or give a file."
        ) from None
    if not data:
        raise UserError("standard input holds no photo: pipe one in, or give a file with --image.")
    if len(data) > MAX_BYTES:
        raise UserError(f"standard input holds more than {MAX_BYTES // 2**20} MiB: pipe in a smaller photo.")
    return load_image(data)


def with_config(file: Path, named: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a file, with those `named` on the command line in their place.

    The file holds a JSON object of :class:`GenerationSettings` fields and, where wanted, a ``preset``. A preset on the
    command line wins over the file's single settings too.

    Raises:
        UserError: no such file, no JSON object, or a name that is no setting.
    """
    kind = CONFIG(f'give a JSON file of settings, such as "{EXAMPLE}"')
    settings = read_json_object(file, kind, f'--config "{file}"')
    try:
        # Under the settings' own names, so that those of the command line can take their places.
        settings = canonical_options(settings)
        GenerationSettings.from_options(settings)
    except UserError as error:
        raise UserError(f'--config "{file}": {error}') from None
    if "preset" in named:
        settings = {name: value for name, value in settings.items() if name not in PRESET_SETTINGS}
    return {**settings, **named}
