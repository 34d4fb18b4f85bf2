"""What a measure is, what it returns, and why it may have no number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from ...runtime.media.read_video import Video
from .media_set import MediaSet

if TYPE_CHECKING:
    from .networks import Networks

Better = Literal["higher", "lower", "neither"]


class UnavailableError(Exception):
    """A measure cannot be had here: a package, weights or an input is missing. The message says which, and what to do.

    It never ends an evaluation: the measure is reported as unavailable, with this reason.
    """


@dataclass(frozen=True)
class NetworkInfo:
    """Which network made a number."""

    name: str
    library: str
    """Package and version that ran it."""
    weights: str
    """Hub id, file or package they were read from."""


@dataclass(frozen=True)
class Scores:
    """A set's number and each video's."""

    value: float
    per_video: dict[str, float] = field(default_factory=dict)
    network: NetworkInfo | None = None
    details: dict[str, float | str] = field(default_factory=dict)


Compute: TypeAlias = "Callable[[MediaSet, Networks], Scores]"
"""Raises :class:`UnavailableError` where a measure cannot be had."""


@dataclass(frozen=True)
class Measure:
    """One measure by its name."""

    name: str
    title: str
    better: Better
    unit: str
    definition: str
    """In one sentence, with the source."""
    compute: Compute
    best_when_frozen: bool = False
    """A still video gets the best value: to be read beside the dynamic degree only."""


@dataclass(frozen=True)
class MeasureResult:
    """A measure's outcome."""

    measure: Measure
    scores: Scores | None
    reason: str | None = None
    """Why there is no number; None where there is one."""
    seconds: float = 0.0

    @property
    def status(self) -> str:
        return "ok" if self.scores is not None else "unavailable"


def mean_over_videos(
    score: Callable[[Video, Any], float],
    network: str | None = None,
    *,
    frames: int = 1,
    weigh_frames: bool = False,
) -> Compute:
    """A measure of each video by itself.

    Args:
        score: of a video, by the network.
        network: which of :class:`Networks`; None: none is needed.
        frames: fewest of a video.
        weigh_frames: a video counts as often as it has frames after the first; else once.
    """

    def compute(media: MediaSet, networks: Networks) -> Scores:
        require_frames(media, frames)
        found = getattr(networks, network) if network else None
        per_video, weights = {}, []
        for video in media.videos:
            per_video[video.name] = score(video, found)
            weights.append(len(video.frames) - 1 if weigh_frames else 1)
        value = float(np.average(list(per_video.values()), weights=weights))
        return Scores(value, per_video, found.info if found else None)

    return compute


def require_frames(media: MediaSet, fewest: int) -> None:
    """Refuse a set with a video of fewer frames than two, or than three.

    Raises:
        UnavailableError: there is one.
    """
    for video in media.videos:
        if len(video.frames) < fewest:
            raise UnavailableError(
                f"{video.name} has one frame: this measure compares neighbouring frames."
                if fewest == 2
                else f"{video.name} has fewer than three frames: none lies between two others."
            )


def installed(package: str) -> str | None:
    """Its version; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def library(package: str) -> str:
    """``package version`` for the record."""
    return " ".join(filter(None, (package, installed(package))))
