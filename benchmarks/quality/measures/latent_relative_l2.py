"""How far a video's latents are from another's: the measure of numerical fidelity before decoding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import UnavailableError
from ..media_set import MediaSet
from ..networks.loader import Networks
from ..result import Measure, Scores
from .psnr import require_originals


def latent_relative_l2(latents: NDArray[np.float32], original: NDArray[np.float32]) -> NDArray[np.float64]:
    """|a - b| / |b| of each frame.

    Args:
        latents, original: [c, frames, h, w] of one shape.

    Returns:
        float64 [frames].
    """
    a, b = (x.astype(np.float64).transpose(1, 0, 2, 3).reshape(x.shape[1], -1) for x in (latents, original))
    return np.asarray(np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1))


def _compute(media: MediaSet, networks: Networks) -> Scores:
    require_originals(media)
    frames = {}
    for video in media.videos:
        latents, original = video.latents, media.originals[video.name].latents
        if latents is None or original is None:
            raise UnavailableError(f"{video.name} and its original do not both have latents (NAME.latents.npy).")
        if latents.shape != original.shape:
            raise UnavailableError(f"the latents of {video.name} and of its original differ in shape.")
        frames[video.name] = latent_relative_l2(latents, original)
    per_video = {name: float(values.mean()) for name, values in frames.items()}
    details: dict[str, float | str] = {"worst_frame": max(float(values.max()) for values in frames.values())}
    return Scores(float(np.mean(list(per_video.values()))), per_video, details=details)


MEASURES = (
    Measure(
        "latent_relative_l2",
        "latent relative L2 against the original",
        "lower",
        ">= 0",
        "|a - b| / |b| of each frame's latents, mean over frames, mean over videos.",
        _compute,
    ),
)
