"""Photos of a command line: files, and ``-`` for standard input."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ...errors import UserError, first_line
from ..media.image import load_image

STANDARD_INPUT = Path("-")
MAX_BYTES = 256 * 2**20


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
