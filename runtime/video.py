"""What a generation returns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .media.video_file import check_output, scaled_size, streaming
from .request.settings import ResolvedSettings
from .timings import Timings


@dataclass(frozen=True, eq=False, repr=False)
class GeneratedVideos:
    """Videos of one call, prompt-major: ``len(videos)``, ``videos[0]`` and a loop give uint8 [frames, height, width, 3]
    of each. Two objects are equal only if they are the same one; compare their arrays.
    """

    frames: NDArray[np.uint8]
    """[videos, frames, height, width, 3]. Frame 0 is the photo's round trip through the VAE, as published."""
    latents: NDArray[np.float32]
    """[videos, c, frames, h, w], scaled."""
    settings: ResolvedSettings
    """What was used, the bundle's defaults and the seed filled in."""
    timings: Timings
    """Seconds per stage."""

    def __repr__(self) -> str:
        count, frames, height, width, _ = self.frames.shape
        return (
            f"<GeneratedVideos: {count} video{'s' * (count != 1)} of {frames} frames {width}x{height}, "
            f"seed {self.settings.seed}, {self.timings.total:.1f} s>"
        )

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return self.frames[index]

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return iter(self.frames)

    def to_pil(self) -> list[list[Image.Image]]:
        """The frames of every video as RGB images of Pillow."""
        return [[Image.fromarray(frame) for frame in video] for video in self.frames]

    def save(self, path: str | os.PathLike[str], *, fps: float | None = None, scale: float = 1) -> list[Path]:
        """Write every video as .mp4, .gif, .webp or .png frames, chosen by the suffix; several videos are numbered.
        All files are put in place, or none.

        Args:
            path: where to.
            fps: frames a second; None: those of the settings.
            scale: factor of the files' width and height (Lanczos).

        Returns:
            The files written.

        Raises:
            UserError: an unknown suffix, a place that cannot be written, or a rate or scale that is not possible.
        """
        videos, frames, height, width, _ = self.frames.shape
        rate = self.settings.fps if fps is None else fps
        scaled_size(height, width, scale)
        with streaming([check_output(path)], videos, frames, rate, scale) as (stream, files):
            for index, video in enumerate(self.frames):
                stream.on_frames(index, 0, video)
        return files
