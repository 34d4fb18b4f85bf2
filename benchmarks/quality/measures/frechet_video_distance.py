"""Fréchet video distance (Unterthiner et al. 2018, arXiv:1812.01717) through cd-fvd."""

from __future__ import annotations

from ..errors import UnavailableError
from ..media_set import MediaSet
from ..networks.loader import Networks
from ..result import Measure, Scores


def require_reference(media: MediaSet) -> None:
    """Refuse sets too small for a distribution.

    Raises:
        UnavailableError: no reference, or fewer than two videos on a side.
    """
    if not media.reference:
        raise UnavailableError("there is no reference set: give a folder or listing of real videos with --reference.")
    if min(len(media.videos), len(media.reference)) < 2:
        raise UnavailableError("a distance between sets needs two videos or more in each.")


def _compute(media: MediaSet, networks: Networks) -> Scores:
    require_reference(media)
    fvd = networks.fvd
    value = fvd.distance((video.frames for video in media.videos), (video.frames for video in media.reference))
    # The estimate is biased upward by small sets, so their sizes belong to the number.
    return Scores(
        value, network=fvd.info, details={"videos": len(media.videos), "reference_videos": len(media.reference)}
    )


MEASURES = (
    Measure(
        "frechet_video_distance",
        "Fréchet video distance",
        "lower",
        ">= 0",
        "|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of the features of the videos and of a reference set, by cd-fvd; "
        "published figures use 2048 videos or more.",
        _compute,
    ),
)
