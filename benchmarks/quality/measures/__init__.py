"""All measures by name, in the order of the report; ``measures.json`` has their definitions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ....errors import UserError
from ..measure import Compute, Measure, mean_over_videos
from ..networks.flow import SIDE
from .appearance import clipsim, frame_consistency, temporal_flickering
from .camera_motion import agreement
from .fidelity import latents_against_originals, psnr_against_originals, ssim_against_originals
from .motion import at_8_fps, magnitudes, motion_smoothness, moves
from .set_distance import frechet_distance, kernel_distance_of_sets

_COMPUTE: dict[str, Compute] = {
    "frechet_video_distance": frechet_distance,
    "kernel_video_distance_lite0_dis": kernel_distance_of_sets,
    "clipsim": clipsim,
    "temporal_flickering": mean_over_videos(lambda video, _: temporal_flickering(video.frames), frames=2),
    "subject_consistency": mean_over_videos(
        lambda video, dino: frame_consistency(dino.images(video.frames)), "dino", frames=2, weigh_frames=True
    ),
    "background_consistency": mean_over_videos(
        lambda video, clip: frame_consistency(clip.images_as_vbench(video.frames)), "clip", frames=2, weigh_frames=True
    ),
    "subject_consistency_lite0": mean_over_videos(
        lambda video, lite0: frame_consistency(lite0.images(video.frames)), "lite0", frames=2, weigh_frames=True
    ),
    "motion_smoothness": mean_over_videos(
        lambda video, amt: motion_smoothness(video.frames, amt.between), "amt", frames=3
    ),
    "motion_smoothness_dis": mean_over_videos(
        lambda video, dis: motion_smoothness(dis.scale(video.frames), dis.between), "dis", frames=3
    ),
    "dynamic_degree": mean_over_videos(
        lambda video, raft: float(moves(magnitudes(at_8_fps(video), raft), min(video.frames.shape[1:3]))),
        "raft",
        frames=2,
    ),
    "dynamic_degree_dis": mean_over_videos(
        lambda video, dis: float(moves(magnitudes(dis.scale(at_8_fps(video)), dis), SIDE)), "dis", frames=2
    ),
    "flow_magnitude_dis": mean_over_videos(
        lambda video, dis: float(np.mean(magnitudes(dis.scale(at_8_fps(video)), dis))), "dis", frames=2
    ),
    "camera_motion_agreement_dis": agreement,
    "psnr": psnr_against_originals,
    "ssim": ssim_against_originals,
    "latent_relative_l2": latents_against_originals,
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
