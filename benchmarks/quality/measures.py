"""All measures by name, in the order of the report; ``measures.json`` has their definitions. Flickering, consistency,
smoothness and dynamic degree are VBench's (Huang et al. 2023, arXiv:2311.17982).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ...runtime.media.read_video import Frames, Video
from .flows import FLOW_SIDE, opencv
from .media_set import MediaSet
from .network_sources import NetworkInfo, UnavailableError
from .networks import Networks

Array = NDArray[np.float64]


def temporal_flickering(frames: Frames) -> float:
    """(255 - mean absolute difference of neighbouring frames) / 255; 1: nothing changes.

    Args:
        frames: uint8 [frames >= 2, h, w, 3].
    """
    return _closeness(itertools.pairwise(frames))


def motion_smoothness(frames: Frames, between: Callable[[Frames, Frames], Frames]) -> float:
    """(255 - mean absolute difference of the odd frames to those interpolated from their even neighbours) / 255.

    Args:
        frames: uint8 [frames >= 3, h, w, 3].
        between: the middle of two frames, uint8.
    """
    middles = itertools.starmap(between, itertools.pairwise(frames[::2]))
    return _closeness(zip(frames[1::2], middles, strict=False))


def _closeness(pairs: Any) -> float:
    differences = [np.abs(b.astype(np.float32) - a).mean(dtype=np.float64) for a, b in pairs]
    return float((255.0 - np.mean(differences)) / 255.0)


def frame_consistency(features: NDArray[np.float32]) -> float:
    """Mean over frames t > 0 of (max(0, f_t . f_{t-1}) + max(0, f_t . f_0)) / 2.

    Args:
        features: of unit length, [frames >= 2, d].
    """
    values = features.astype(np.float64)
    previous = np.maximum(0.0, (values[1:] * values[:-1]).sum(axis=1))
    first = np.maximum(0.0, values[1:] @ values[0])
    return float(((previous + first) / 2).mean())


# -- motion ------------------------------------------------------------------------------------------------------------


def top_magnitude(flow: NDArray[np.float32]) -> float:
    """Mean length of the 5 % largest vectors of a flow [h, w, 2], in pixels."""
    lengths = np.sort(np.hypot(flow[..., 0], flow[..., 1]).ravel())
    return float(lengths[-max(1, int(lengths.size * 0.05)) :].mean(dtype=np.float64))


def magnitudes(frames: Frames, network: Any) -> list[float]:
    """:func:`top_magnitude` of each neighbouring pair, by a network's ``flow``."""
    return [top_magnitude(network.flow(a, b)) for a, b in itertools.pairwise(frames)]


def moves(magnitudes: list[float], smaller_side: int) -> bool:
    """VBench's decision: enough pairs of frames move far enough.

    Args:
        magnitudes: :func:`top_magnitude` of each neighbouring pair, n - 1 of them for n frames.
        smaller_side: of the frames, in pixels: the threshold is 6 pixels at 256.
    """
    threshold, needed = 6.0 * smaller_side / 256.0, round(4 * (len(magnitudes) + 1) / 16.0)
    return sum(magnitude > threshold for magnitude in magnitudes) >= needed


def at_8_fps(video: Video) -> Frames:
    """Every round(fps / 8)-th frame, as VBench samples; never fewer than two."""
    sampled = video.frames[:: max(1, round(video.fps / 8))]
    return sampled if len(sampled) > 1 else video.frames


# -- fidelity to an original -------------------------------------------------------------------------------------------

WINDOW = 11


def mean_squared_errors(frames: Frames, original: Frames) -> Array:
    """Of each frame, float64 [frames], of uint8 [frames, h, w, 3] of one shape."""
    pairs = zip(frames, original, strict=True)
    return np.array([((a.astype(np.float64) - b.astype(np.float64)) ** 2).mean() for a, b in pairs])


def psnr(mean_squared_error: float) -> float:
    """10 log10(255^2 / mean squared error), in dB; infinite for equal pictures."""
    return math.inf if mean_squared_error == 0 else 10.0 * math.log10(255.0**2 / mean_squared_error)


def ssim(frames: Frames, original: Frames) -> Array:
    """SSIM of each frame: 11x11 Gaussian window of sigma 1.5, where it fits whole; mean over places and RGB
    (Wang et al. 2004, doi:10.1109/TIP.2003.819861).

    Args:
        frames, original: uint8 [frames, h >= 11, w >= 11, 3] of one shape.

    Raises:
        UnavailableError: OpenCV is not installed.
    """
    cv2, inside, c1, c2 = opencv("SSIM"), slice(WINDOW // 2, -(WINDOW // 2)), (0.01 * 255) ** 2, (0.03 * 255) ** 2

    def blur(x: Array) -> Array:
        return np.asarray(cv2.GaussianBlur(x, (WINDOW, WINDOW), 1.5))[inside, inside]

    def of_frame(x: Array, y: Array) -> float:
        mean_x, mean_y = blur(x), blur(y)
        var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
        top = (2 * mean_x * mean_y + c1) * (2 * (blur(x * y) - mean_x * mean_y) + c2)
        return float((top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())

    pairs = zip(frames, original, strict=True)
    return np.array([of_frame(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs])


def latent_relative_l2(latents: NDArray[np.float32], original: NDArray[np.float32]) -> Array:
    """|a - b| / |b| of each frame, float64 [frames], of [c, frames, h, w] of one shape."""
    a, b = (x.astype(np.float64).transpose(1, 0, 2, 3).reshape(x.shape[1], -1) for x in (latents, original))
    return np.asarray(np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1))


# -- measures of a set -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """A set's number and each video's."""

    value: float
    per_video: dict[str, float] = field(default_factory=dict)
    network: NetworkInfo | None = None
    details: dict[str, float | str] = field(default_factory=dict)


Compute = Callable[[MediaSet, Networks], Scores]
"""Raises :class:`UnavailableError` where a measure cannot be had."""


@dataclass(frozen=True)
class Measure:
    """One measure by its name."""

    name: str
    title: str
    better: Literal["higher", "lower", "neither"]
    unit: str
    definition: str
    """In one sentence, with the source."""
    compute: Compute
    best_when_frozen: bool = False
    """A still video gets the best value: to be read beside the dynamic degree only."""


def _of_each(
    score: Callable[[Video, Any], float], network: str | None = None, frames: int = 2, *, weigh_frames: bool = False
) -> Compute:
    """A measure of each video by itself.

    Args:
        score: of a video, by the network.
        network: which of :class:`Networks`; None: none is needed.
        frames: fewest of a video.
        weigh_frames: a video counts as often as it has frames after the first; else once.
    """

    def compute(media: MediaSet, networks: Networks) -> Scores:
        _require_frames(media.videos, frames)
        found = getattr(networks, network) if network else None
        per_video, weights = {}, []
        for video in media.videos:
            per_video[video.name] = score(video, found)
            weights.append(len(video.frames) - 1 if weigh_frames else 1)
        value = float(np.average(list(per_video.values()), weights=weights))
        return Scores(value, per_video, found.info if found else None)

    return compute


def _require_frames(videos: Sequence[Video], fewest: int) -> None:
    for video in videos:
        if len(video.frames) < fewest:
            raise UnavailableError(
                f"{video.name} has one frame: this measure compares neighbouring frames."
                if fewest == 2
                else f"{video.name} has fewer than three frames: none lies between two others."
            )


def _caption_likeness(video: Video, clip: Any) -> float:
    """Mean cosine of CLIP's features of the frames and of the caption (GODIVA, Wu et al. 2021, arXiv:2104.14806)."""
    if not video.caption:
        raise UnavailableError(f"{video.name} has no caption: give a listing with captions.")
    return float((clip.images(video.frames) @ clip.text(video.caption)).mean(dtype=np.float64))


def _against_originals(
    of_frames: Callable[[Video, Video], Array],
    worst: Callable[..., float],
    shown: Callable[[float], float] = float,
    *,
    first_frame: bool = False,
) -> Compute:
    """A measure of each frame against its original: mean over frames, then over videos.

    Args:
        of_frames: the values of a video and its original, float64 [frames].
        worst: `min` or `max` of values.
        shown: of a mean of values, the number that is reported.
        first_frame: give that of the first frames too.
    """

    def compute(media: MediaSet, networks: Networks) -> Scores:
        if not media.originals:
            raise UnavailableError("there is nothing to compare with: give the originals with --against.")
        values = {video.name: of_frames(video, media.originals[video.name]) for video in media.videos}
        details: dict[str, float | str] = {"worst_frame": shown(float(worst(worst(v) for v in values.values())))}
        if first_frame:
            details["first_frame"] = shown(float(np.mean([v[0] for v in values.values()])))
        per_video = {name: shown(float(v.mean())) for name, v in values.items()}
        return Scores(shown(float(np.mean([v.mean() for v in values.values()]))), per_video, details=details)

    return compute


def _ssim(video: Video, original: Video) -> Array:
    if min(video.frames.shape[1:3]) < WINDOW:
        raise UnavailableError(f"{video.name} is smaller than SSIM's window of {WINDOW} pixels.")
    return ssim(video.frames, original.frames)


def _latents(video: Video, original: Video) -> Array:
    if video.latents is None or original.latents is None:
        raise UnavailableError(f"{video.name} and its original do not both have latents (NAME.latents.npy).")
    if video.latents.shape != original.latents.shape:
        raise UnavailableError(f"the latents of {video.name} and of its original differ in shape.")
    return latent_relative_l2(video.latents, original.latents)


def _frechet_distance(media: MediaSet, networks: Networks) -> Scores:
    """Of cd-fvd's features of both sets (Unterthiner et al. 2018, arXiv:1812.01717)."""
    if not media.reference:
        raise UnavailableError("there is no reference set: give a folder or listing of real videos with --reference.")
    if min(len(media.videos), len(media.reference)) < 2:
        raise UnavailableError("a distance between sets needs two videos or more in each.")
    # Estimates depend on the sizes of both sets, so they belong to the number.
    sizes: dict[str, float | str] = {"videos": len(media.videos), "reference_videos": len(media.reference)}
    sides = ((video.frames for video in side) for side in (media.videos, media.reference))
    return Scores(networks.fvd.distance(*sides), network=networks.fvd.info, details=sizes)


_COMPUTE: dict[str, Compute] = {
    "frechet_video_distance": _frechet_distance,
    "clipsim": _of_each(_caption_likeness, "clip", 1),
    "temporal_flickering": _of_each(lambda video, _: temporal_flickering(video.frames)),
    "subject_consistency": _of_each(
        lambda video, dino: frame_consistency(dino.images(video.frames)), "dino", weigh_frames=True
    ),
    "background_consistency": _of_each(
        lambda video, clip: frame_consistency(clip.images_as_vbench(video.frames)), "clip", weigh_frames=True
    ),
    "subject_consistency_lite0": _of_each(
        lambda video, lite0: frame_consistency(lite0.images(video.frames)), "lite0", weigh_frames=True
    ),
    "motion_smoothness_dis": _of_each(
        lambda video, dis: motion_smoothness(dis.scale(video.frames), dis.between), "dis", 3
    ),
    "dynamic_degree": _of_each(
        lambda video, raft: float(moves(magnitudes(at_8_fps(video), raft), min(video.frames.shape[1:3]))), "raft"
    ),
    "dynamic_degree_dis": _of_each(
        lambda video, dis: float(moves(magnitudes(dis.scale(at_8_fps(video)), dis), FLOW_SIDE)), "dis"
    ),
    "flow_magnitude_dis": _of_each(
        lambda video, dis: float(np.mean(magnitudes(dis.scale(at_8_fps(video)), dis))), "dis"
    ),
    # Errors are averaged, not decibels: one equal frame would make their mean infinite.
    "psnr": _against_originals(
        lambda video, original: mean_squared_errors(video.frames, original.frames), max, psnr, first_frame=True
    ),
    "ssim": _against_originals(_ssim, min),
    "latent_relative_l2": _against_originals(_latents, max),
}
_TEXTS = json.loads(Path(__file__).with_name("measures.json").read_text(encoding="utf-8"))

MEASURES = {name: Measure(name, **_TEXTS[name], compute=compute) for name, compute in _COMPUTE.items()}
DYNAMICS = ("dynamic_degree", "dynamic_degree_dis", "flow_magnitude_dis")


def choose_measures(names: Sequence[str] | None) -> list[Measure]:
    """The measures named, or all.

    The dynamic degree comes with every measure that a frozen video would win, whether asked for or not.

    Raises:
        UserError: an unknown name.
    """
    for name in names or ():
        if name not in MEASURES:
            raise UserError(f"measure {name!r} is unknown: choose {', '.join(MEASURES)}.")
    chosen = set(names or MEASURES)
    if any(MEASURES[name].best_when_frozen for name in chosen):
        chosen.update(DYNAMICS)
    return [measure for name, measure in MEASURES.items() if name in chosen]
