"""How far a set of videos is from a reference set: the Fréchet video distance, and a kernel distance of our own.

The Fréchet video distance (Unterthiner et al. 2018, arXiv:1812.01717) is cd-fvd's. The kernel distance uses what comes
by package name: appearance by EfficientNet-Lite0, motion by DIS flow.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ....runtime.media.read_video import Video
from ..measure import NetworkInfo, Scores, UnavailableError, require_frames
from ..media_set import MediaSet
from ..networks import Networks

Blocks = tuple[NDArray[np.float64], ...]

_PERCENTILES = (50, 95)


def video_features(video: Video, networks: Networks) -> Blocks:
    """What a video looks like, how that changes, and how things move: float64 [1280], [1280] and [6].

    Lite0 features: their mean over frames and the mean of their absolute change from frame to frame. DIS flow: median
    and 95th percentile of its length, of how it changes from pair to pair, and of how ill it explains the next frame;
    as logarithms.
    """
    appearance = networks.lite0.images(video.frames).astype(np.float64)
    change = np.abs(np.diff(appearance, axis=0)).mean(axis=0)
    dis = networks.dis
    frames = dis.scale(video.frames)
    flows = [dis.flow(a, b) for a, b in itertools.pairwise(frames)]
    lengths = np.stack([np.hypot(flow[..., 0], flow[..., 1]) for flow in flows])
    jerk = np.abs(np.diff(np.stack(flows), axis=0)) if len(flows) > 1 else np.zeros(1)
    unexplained = np.stack(
        [np.abs(dis.warp(b, flow) - a) for a, b, flow in zip(frames[:-1], frames[1:], flows, strict=True)]
    )
    motion = np.log1p([np.percentile(part, p) for part in (lengths, jerk, unexplained) for p in _PERCENTILES])
    return appearance.mean(axis=0), change, motion


def kernel_distance(a: Sequence[Blocks], b: Sequence[Blocks]) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x . y / blocks + 1)^3 (as KID, arXiv:1801.01401).

    Args:
        a, b: features of two videos or more; each block is scaled so that b's has mean square length 1, and so all
            blocks weigh alike.
    """

    def scaled(side: Sequence[Blocks]) -> NDArray[np.float64]:
        parts = []
        for own, reference in zip(zip(*side, strict=True), zip(*b, strict=True), strict=True):
            length = np.sqrt(np.mean([block @ block for block in reference]))
            parts.append(np.stack(own) / (length or 1.0))
        return np.concatenate(parts, axis=1)

    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((x @ y.T / len(b[0]) + 1.0) ** 3)

    def within(x: NDArray[np.float64]) -> float:
        k, n = kernel(x, x), len(x)
        return float((k.sum() - np.trace(k)) / (n * (n - 1)))

    x, y = scaled(a), scaled(b)
    return within(x) + within(y) - 2.0 * float(kernel(x, y).mean())


def _sizes(media: MediaSet) -> dict[str, float | str]:
    """Of both sets: estimates depend on them, so they belong to the number.

    Raises:
        UnavailableError: no reference, or fewer than two videos on a side.
    """
    if not media.reference:
        raise UnavailableError("there is no reference set: give a folder or listing of real videos with --reference.")
    if min(len(media.videos), len(media.reference)) < 2:
        raise UnavailableError("a distance between sets needs two videos or more in each.")
    return {"videos": len(media.videos), "reference_videos": len(media.reference)}


def frechet_distance(media: MediaSet, networks: Networks) -> Scores:
    """Of cd-fvd's features of both sets."""
    sizes, fvd = _sizes(media), networks.fvd
    value = fvd.distance((video.frames for video in media.videos), (video.frames for video in media.reference))
    return Scores(value, network=fvd.info, details=sizes)


def kernel_distance_of_sets(media: MediaSet, networks: Networks) -> Scores:
    """:func:`kernel_distance` of both sets' :func:`video_features`."""
    sizes, sides = _sizes(media), (media.videos, media.reference)
    for side in sides:
        require_frames(MediaSet(side), 2)
    videos, reference = ([video_features(video, networks) for video in side] for side in sides)
    lite0, dis = networks.lite0.info, networks.dis.info
    network = NetworkInfo(
        f"{lite0.name} + {dis.name}", f"{lite0.library}, {dis.library}", f"{lite0.weights}; {dis.weights}"
    )
    return Scores(kernel_distance(videos, reference), network=network, details=sizes)
