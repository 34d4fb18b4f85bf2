"""Dynamic degree (VBench, arXiv:2311.17982) on RAFT, the same rule on DIS flow, and how far things move."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ....runtime.media.read_video import Frames, Video
from ..media_set import MediaSet
from ..networks.dis_flow import SIDE
from ..networks.loader import Networks
from ..result import Measure, NetworkInfo, Scores
from .temporal_flickering import require_two_frames

TOP = 0.05
FPS = 8

FlowFunction = Callable[[Frames, Frames], NDArray[np.float32]]


def top_magnitude(flow: NDArray[np.float32]) -> float:
    """Mean length of the 5 % largest vectors of a flow [h, w, 2], in pixels."""
    lengths = np.sort(np.hypot(flow[..., 0], flow[..., 1]).ravel())
    count = max(1, int(lengths.size * TOP))
    return float(lengths[-count:].mean(dtype=np.float64))


def moves(magnitudes: list[float], smaller_side: int) -> bool:
    """VBench's decision: enough pairs of frames move far enough.

    Args:
        magnitudes: :func:`top_magnitude` of each neighbouring pair, n - 1 of them for n frames.
        smaller_side: of the frames, in pixels: the threshold is 6 pixels at 256.
    """
    threshold = 6.0 * smaller_side / 256.0
    needed = round(4 * (len(magnitudes) + 1) / 16.0)
    return sum(magnitude > threshold for magnitude in magnitudes) >= needed


def at_8_fps(video: Video) -> Frames:
    """Every round(fps / 8)-th frame, as VBench samples; never fewer than two."""
    interval = max(1, round(video.fps / FPS))
    sampled = video.frames[::interval]
    return sampled if len(sampled) > 1 else video.frames


def pair_magnitudes(frames: Frames, flow: FlowFunction) -> list[float]:
    """:func:`top_magnitude` of each neighbouring pair."""
    return [top_magnitude(flow(a, b)) for a, b in itertools.pairwise(frames)]


def _degree(magnitudes: dict[str, tuple[list[float], int]], network: NetworkInfo) -> Scores:
    per_video = {name: float(moves(values, side)) for name, (values, side) in magnitudes.items()}
    return Scores(float(np.mean(list(per_video.values()))), per_video, network)


def _raft(media: MediaSet, networks: Networks) -> Scores:
    require_two_frames(media)
    raft = networks.raft
    for video in media.videos:
        raft.check_size(*video.frames.shape[1:3])
    magnitudes = {
        video.name: (pair_magnitudes(at_8_fps(video), raft.flow), min(video.frames.shape[1:3]))
        for video in media.videos
    }
    return _degree(magnitudes, raft.info)


def _dis_magnitudes(media: MediaSet, networks: Networks) -> dict[str, tuple[list[float], int]]:
    require_two_frames(media)
    dis = networks.dis
    return {video.name: (pair_magnitudes(dis.scale(at_8_fps(video)), dis.flow), SIDE) for video in media.videos}


def _dis(media: MediaSet, networks: Networks) -> Scores:
    return _degree(_dis_magnitudes(media, networks), networks.dis.info)


def _dis_magnitude(media: MediaSet, networks: Networks) -> Scores:
    magnitudes = _dis_magnitudes(media, networks)
    per_video = {name: float(np.mean(values)) for name, (values, _) in magnitudes.items()}
    return Scores(float(np.mean(list(per_video.values()))), per_video, networks.dis.info)


_RULE = (
    "a video moves if, in at least a quarter of its frames (8 a second), the mean of the 5 % largest optical flow "
    "vectors exceeds 6 pixels at a smaller side of 256; the fraction of moving videos"
)

MEASURES = (
    Measure("dynamic_degree", "dynamic degree", "neither", "0..1", f"VBench: {_RULE}. Flow by RAFT.", _raft),
    Measure(
        "dynamic_degree_dis",
        "dynamic degree (DIS)",
        "neither",
        "0..1",
        f"Our own, not VBench's number: {_RULE}. Flow by DIS.",
        _dis,
    ),
    Measure(
        "flow_magnitude_dis",
        "flow magnitude (DIS)",
        "neither",
        "px/frame",
        "Our own: mean over neighbouring frames (8 a second) of the mean of the 5 % largest DIS flow vectors, in "
        "pixels at a smaller side of 256; mean over videos.",
        _dis_magnitude,
    ),
)
