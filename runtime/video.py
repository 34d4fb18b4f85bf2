"""What a generation returns."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .settings import ResolvedSettings
from .timings import Timings
from .video_file import numbered, save_frames


@dataclass(frozen=True)
class GeneratedVideos:
    """Videos of one call, prompt-major."""

    frames: NDArray[np.uint8]
    """[videos, frames, height, width, 3]. Frame 0 is the photo's round trip through the VAE, as published."""
    latents: NDArray[np.float32]
    """[videos, c, frames, h, w], scaled."""
    settings: ResolvedSettings
    """What was used, the bundle's defaults and the seed filled in."""
    timings: Timings
    """Seconds per stage."""

    def save(self, path: str | os.PathLike[str], *, fps: float | None = None) -> list[Path]:
        """Write every video as .mp4, .gif, .webp or .png frames, chosen by the suffix; several videos are numbered.

        Returns:
            The files written.

        Raises:
            UserError: an unknown suffix or a place that cannot be written.
        """
        count = len(self.frames)
        return [
            file
            for i, frames in enumerate(self.frames)
            for file in save_frames(frames, numbered(path, i, count), fps or self.settings.fps)
        ]
