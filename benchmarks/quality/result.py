"""What a measure is, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from .media_set import MediaSet

if TYPE_CHECKING:
    from .networks.loader import Networks

Better = Literal["higher", "lower", "neither"]


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


@dataclass(frozen=True)
class Measure:
    """One measure by its name."""

    name: str
    title: str
    better: Better
    unit: str
    definition: str
    """In one sentence, with the source."""
    compute: Callable[[MediaSet, Networks], Scores]
    """Raises :class:`UnavailableError` where it cannot be had."""
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
