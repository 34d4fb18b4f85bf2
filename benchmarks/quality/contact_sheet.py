"""A picture of an evaluation: a row of frames for every video."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ...runtime.media.read_video import Video

COLUMNS = 6
MAX_ROWS = 64
_CELL = 128
_GAP = 4
_LABEL = 16


def contact_sheet(videos: Sequence[Video]) -> Image.Image:
    """First to last frame in six even steps, a row a video, its name and caption above; at most 64 rows."""
    rows = list(videos[:MAX_ROWS])
    heights = [max(1, round(_CELL * video.frames.shape[1] / video.frames.shape[2])) for video in rows]
    width = COLUMNS * (_CELL + _GAP) + _GAP
    sheet = Image.new("RGB", (width, _GAP + sum(height + _LABEL + _GAP for height in heights)), "white")
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for video, height in zip(rows, heights, strict=True):
        draw.text((_GAP, top), _label(video, draw, width - 2 * _GAP), fill="black")
        top += _LABEL
        for column, index in enumerate(np.linspace(0, len(video.frames) - 1, COLUMNS).round().astype(int)):
            picture = Image.fromarray(video.frames[index]).resize((_CELL, height), Image.Resampling.LANCZOS)
            sheet.paste(picture, (_GAP + column * (_CELL + _GAP), top))
        top += height + _GAP
    return sheet


def _label(video: Video, draw: ImageDraw.ImageDraw, width: int) -> str:
    # One line, and no longer than could ever fit: a caption may be anything.
    text = " ".join(f"{video.name}  {video.caption or ''}"[:width].split())
    # Pillow's own font has Latin-1 only.
    text = text.encode("latin-1", "replace").decode("latin-1")
    while draw.textlength(text) > width:
        text = text[:-4] + "..."
    return text
