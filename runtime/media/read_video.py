"""Videos to measure: any file FFmpeg reads, an animated WebP, or a folder of numbered pictures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from ...errors import UserError
from .image import load_image

Frames = NDArray[np.uint8]

VIDEO_SUFFIXES = (".mp4", ".gif", ".webp", ".webm", ".mov", ".mkv", ".avi", ".mpg", ".m4v")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
PICTURES_FPS = 8.0
"""A folder of pictures tells no frame rate; the published sampling writes 8 a second."""
MAX_BYTES = 2 << 30


@dataclass(frozen=True)
class Video:
    """Decoded frames and where they came from."""

    name: str
    """Path below the folder or listing it was found in; unique in a set."""
    frames: Frames
    """uint8 RGB [frames, height, width, 3]."""
    fps: float
    caption: str | None = None
    latents: NDArray[np.float32] | None = None
    """Scaled latents [c, frames, h, w] of a generated video, where they were kept."""


def read_video(path: str | os.PathLike[str], max_frames: int | None = None) -> tuple[Frames, float]:
    """Decode a video.

    Args:
        path: a file with one of :data:`VIDEO_SUFFIXES`, or a folder of pictures taken in the order of their names.
        max_frames: read only the first ones.

    Returns:
        uint8 RGB frames [frames, height, width, 3], and frames a second.

    Raises:
        UserError: no such file, not a video, pictures of different sizes, or more than 2 GiB of frames.
    """
    source = Path(path)
    if source.is_dir():
        pictures = sorted(file for file in source.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES)
        frames, fps = [np.asarray(load_image(file)) for file in pictures[:max_frames]], PICTURES_FPS
    elif not source.is_file():
        raise UserError(f'video "{source}" does not exist: check the path.')
    else:
        read = _read_webp if source.suffix.lower() == ".webp" else _read_container
        try:
            frames, fps = read(source, max_frames)
        except (av.FFmpegError, OSError) as error:
            raise UserError(f'"{source}" cannot be read as a video ({type(error).__name__}): save it again.') from None
    if not frames:
        raise UserError(f'"{source}" holds no frames: give a video with at least one.')
    if len({frame.shape for frame in frames}) > 1:
        raise UserError(f'the frames of "{source}" differ in size: scale them alike first.')
    return np.stack(frames), fps


def find_videos(folder: str | os.PathLike[str]) -> list[Path]:
    """Video files, and folders of pictures, directly below `folder`, in the order of their names.

    Raises:
        UserError: no such folder, or nothing in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f'the folder "{root}" does not exist: give a folder of videos.')
    found = [entry for entry in sorted(root.iterdir()) if not entry.name.startswith(".") and _is_video(entry)]
    if not found:
        raise UserError(f'"{root}" holds no video: put files ending in {", ".join(VIDEO_SUFFIXES)} in it.')
    return found


def _is_video(entry: Path) -> bool:
    if entry.is_dir():
        return any(file.suffix.lower() in PICTURE_SUFFIXES for file in entry.iterdir())
    return entry.suffix.lower() in VIDEO_SUFFIXES


def _read_container(source: Path, max_frames: int | None) -> tuple[list[Frames], float]:
    frames: list[Frames] = []
    # An absolute path, for FFmpeg takes what stands before a colon for a protocol.
    with av.open(str(source.absolute())) as container:
        if not container.streams.video:
            raise UserError(f'"{source}" holds no video stream: give a video.')
        stream = container.streams.video[0]
        for frame in container.decode(stream):
            frames.append(frame.to_ndarray(format="rgb24"))
            _check_bytes(frames, source)
            if len(frames) == max_frames:
                break
        return frames, float(stream.average_rate or stream.guessed_rate or PICTURES_FPS)


def _read_webp(source: Path, max_frames: int | None) -> tuple[list[Frames], float]:
    """FFmpeg does not read animated WebP; Pillow does. Equal neighbours were written as one that lasts longer."""
    pages: list[Frames] = []
    durations: list[float] = []
    with Image.open(source, formats=["WEBP"]) as image:
        for page in ImageSequence.Iterator(image):
            pages.append(np.asarray(page.convert("RGB")))
            durations.append(float(page.info.get("duration") or 1000 / PICTURES_FPS))
            _check_bytes(pages, source)
    shortest = min(durations)
    counts = [max(1, round(duration / shortest)) for duration in durations]
    frames = [page for page, count in zip(pages, counts, strict=True) for _ in range(count)]
    return frames[:max_frames], 1000 / shortest


def _check_bytes(frames: list[Frames], source: Path) -> None:
    if len(frames) * frames[0].nbytes > MAX_BYTES:
        raise UserError(f'"{source}" has more than 2 GiB of frames: cut it, or set the number of frames to read.')
