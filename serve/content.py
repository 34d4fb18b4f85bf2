"""A finished video in the format that a client asks for; what is not mp4 is made of its frames at the first request."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..runtime.files.replace_files import replacing
from ..runtime.media.video_file import save_frames
from .store import FRAMES, VIDEO


class Format(NamedTuple):
    """A file of a job's folder that clients may ask for."""

    file: str
    media_type: str
    make: Callable[[NDArray[np.uint8], Path, float], Any] | None
    """None: the worker made it."""


def _zip(frames: NDArray[np.uint8], target: Path, fps: float) -> None:
    """The frames as PNG files: every pixel as the model made it."""
    with replacing([target]) as (temporary,), zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for index, frame in enumerate(frames):
            file = io.BytesIO()
            Image.fromarray(frame).save(file, "PNG")
            archive.writestr(f"frame-{index:03d}.png", file.getvalue())


def _thumbnail(frames: NDArray[np.uint8], target: Path, fps: float) -> None:
    with replacing([target]) as (temporary,), temporary.open("wb") as file:
        Image.fromarray(frames[len(frames) // 2]).save(file, "WEBP", quality=85)


FORMATS = {
    "mp4": Format(VIDEO, "video/mp4", None),
    "gif": Format("video.gif", "image/gif", save_frames),
    "webp": Format("video.webp", "image/webp", save_frames),
    "png-zip": Format("frames.zip", "application/zip", _zip),
}
THUMBNAIL = Format("thumbnail.webp", "image/webp", _thumbnail)
_locks: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()


async def file_of(folder: Path, form: Format, fps: float) -> Path:
    """The file, made if it is not there.

    Raises:
        UserError, OSError: it cannot be written.
    """
    target = folder / form.file
    if form.make is None or target.exists():
        return target
    lock = _locks.setdefault(target, asyncio.Lock())
    async with lock:
        if not target.exists():
            await asyncio.to_thread(_make, folder, form, fps)
    return target


def _make(folder: Path, form: Format, fps: float) -> None:
    assert form.make is not None
    form.make(np.load(folder / FRAMES, allow_pickle=False), folder / form.file, fps)
