"""Random draws of a generation, in the published order: VAE posterior, base noise, independent noise, eta's noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from .torch_random import TorchGenerator

Noise = NDArray[np.float32]


class RandomStreams:
    """One stream for all videos, as in the published pipeline, or one per video.

    With one seed the videos of a call share the stream, so a video depends on its place in the batch. With one seed
    per video each video is the one that its seed gives alone (the published code makes batch^2 samples of such a list).

    Args:
        seed: a number, or one per video.
        videos: how many.

    Raises:
        UserError: the number of seeds is not that of the videos.
    """

    def __init__(self, seed: int | tuple[int, ...] | None, videos: int) -> None:
        self._shared = not isinstance(seed, tuple)
        seeds = seed if isinstance(seed, tuple) else (seed,)
        if not self._shared and len(seeds) != videos:
            raise UserError(f"{len(seeds)} seeds for {videos} videos: give one seed, or one per video.")
        self._streams = [TorchGenerator(s) for s in seeds]  # type: ignore[arg-type]

    def randn(self, shape: tuple[int, ...], rows: int = 1) -> Noise:
        """Standard normal noise [videos, ...]; where each video has a stream, it draws `rows` of the first axis."""
        if self._shared:
            return self._streams[0].randn(shape)
        return np.concatenate([stream.randn((rows, *shape[1:])) for stream in self._streams])

    def posterior(self, shape: tuple[int, ...], prompts: int) -> Noise:
        """Noise for the VAE posterior of `prompts` images of one or more frames, shape [prompts * frames, c, h, w].

        With one seed per video every video samples the posterior for itself: [videos * frames, c, h, w].
        """
        return self.randn(shape, shape[0] // prompts)

    def noise(self, base_shape: tuple[int, ...] | None, shape: tuple[int, ...]) -> tuple[Noise | None, Noise]:
        """Base noise (None where `base_shape` is None), then independent noise; no stream waits for another one."""
        base = None if base_shape is None else self.randn(base_shape)
        return base, self.randn(shape)
