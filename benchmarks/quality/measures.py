"""All measures by name, in the order of the report; ``measures.json`` has their definitions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...errors import UserError
from ...runtime.media.read_video import Video
from . import formulas
from .formulas import Array, at_8_fps, frame_consistency, magnitudes, motion_smoothness, moves
from .media_set import MediaSet
from .networks import FLOW_SIDE, NetworkInfo, Networks, UnavailableError


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


def _camera_agreement(media: MediaSet, networks: Networks) -> Scores:
    """Of the videos whose caption names one camera move, the fraction that shows it."""
    _require_frames(media.videos, 2)
    wanted = {video.name: formulas.captioned_move(video.caption or "") for video in media.videos}
    if not any(wanted.values()):
        raise UnavailableError("no caption names one camera move (pan left, zoom in, still ...).")
    seen = {v.name: formulas.mean_flow(v.frames, networks.dis).move for v in media.videos if wanted[v.name]}
    per_video = {name: float(move == wanted[name]) for name, move in seen.items()}
    details: dict[str, float | str] = {f"{name}: asked {wanted[name]}": f"seen {move}" for name, move in seen.items()}
    return Scores(float(np.mean(list(per_video.values()))), per_video, networks.dis.info, details)


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
    if min(video.frames.shape[1:3]) < formulas.WINDOW:
        raise UnavailableError(f"{video.name} is smaller than SSIM's window of {formulas.WINDOW} pixels.")
    return formulas.ssim(video.frames, original.frames)


def _latents(video: Video, original: Video) -> Array:
    if video.latents is None or original.latents is None:
        raise UnavailableError(f"{video.name} and its original do not both have latents (NAME.latents.npy).")
    if video.latents.shape != original.latents.shape:
        raise UnavailableError(f"the latents of {video.name} and of its original differ in shape.")
    return formulas.latent_relative_l2(video.latents, original.latents)


def _sizes(media: MediaSet) -> dict[str, float | str]:
    """Of both sets: estimates depend on them, so they belong to the number."""
    if not media.reference:
        raise UnavailableError("there is no reference set: give a folder or listing of real videos with --reference.")
    if min(len(media.videos), len(media.reference)) < 2:
        raise UnavailableError("a distance between sets needs two videos or more in each.")
    return {"videos": len(media.videos), "reference_videos": len(media.reference)}


def _frechet_distance(media: MediaSet, networks: Networks) -> Scores:
    """Of cd-fvd's features of both sets (Unterthiner et al. 2018, arXiv:1812.01717)."""
    sizes, fvd = _sizes(media), networks.fvd
    value = fvd.distance((video.frames for video in media.videos), (video.frames for video in media.reference))
    return Scores(value, network=fvd.info, details=sizes)


def _kernel_distance(media: MediaSet, networks: Networks) -> Scores:
    """On what comes by package name: appearance by EfficientNet-Lite0, motion by DIS flow."""
    sizes, sides = _sizes(media), []
    for side in (media.videos, media.reference):
        _require_frames(side, 2)
        sides.append([formulas.video_features(video, networks) for video in side])
    both = (networks.lite0.info, networks.dis.info)
    joined = (
        sign.join(getattr(info, part) for info in both)
        for sign, part in ((" + ", "name"), (", ", "library"), ("; ", "weights"))
    )
    return Scores(formulas.kernel_distance(*sides), network=NetworkInfo(*joined), details=sizes)


_COMPUTE: dict[str, Compute] = {
    "frechet_video_distance": _frechet_distance,
    "kernel_video_distance_lite0_dis": _kernel_distance,
    "clipsim": _of_each(_caption_likeness, "clip", 1),
    "temporal_flickering": _of_each(lambda video, _: formulas.temporal_flickering(video.frames)),
    "subject_consistency": _of_each(
        lambda video, dino: frame_consistency(dino.images(video.frames)), "dino", weigh_frames=True
    ),
    "background_consistency": _of_each(
        lambda video, clip: frame_consistency(clip.images_as_vbench(video.frames)), "clip", weigh_frames=True
    ),
    "subject_consistency_lite0": _of_each(
        lambda video, lite0: frame_consistency(lite0.images(video.frames)), "lite0", weigh_frames=True
    ),
    "motion_smoothness": _of_each(lambda video, amt: motion_smoothness(video.frames, amt.between), "amt", 3),
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
    "camera_motion_agreement_dis": _camera_agreement,
    # Errors are averaged, not decibels: one equal frame would make their mean infinite.
    "psnr": _against_originals(
        lambda video, original: formulas.mean_squared_errors(video.frames, original.frames),
        max,
        formulas.psnr,
        first_frame=True,
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
