"""All measures by name, in the order of the report."""

from __future__ import annotations

from collections.abc import Sequence

from ....errors import UserError
from ..result import Measure
from . import (
    camera_motion,
    clipsim,
    dynamic_degree,
    frame_consistency,
    frechet_video_distance,
    kernel_video_distance,
    latent_relative_l2,
    motion_smoothness,
    psnr,
    ssim,
    temporal_flickering,
)

_MODULES = (
    frechet_video_distance,
    kernel_video_distance,
    clipsim,
    temporal_flickering,
    frame_consistency,
    motion_smoothness,
    dynamic_degree,
    camera_motion,
    psnr,
    ssim,
    latent_relative_l2,
)
MEASURES: dict[str, Measure] = {measure.name: measure for module in _MODULES for measure in module.MEASURES}
MOTION = tuple(measure.name for measure in dynamic_degree.MEASURES)


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
        chosen.update(MOTION)
    return [measure for name, measure in MEASURES.items() if name in chosen]
