"""What a variant gave, and the judgement of presets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..quality.measures.latent_relative_l2 import latent_relative_l2
from ..quality.measures.psnr import mean_squared_errors, psnr

KEEP_BELOW = 0.5
"""A preset's loss is "clearly smaller than the distance between seeds" below this share of it."""


@dataclass(frozen=True)
class Distance:
    """How far videos are from others made of the same photos; frame 0, the photo itself, does not count."""

    latent_relative_l2: float
    psnr: float
    """dB."""


def distance(
    latents: NDArray[np.float32],
    frames: NDArray[np.uint8],
    exact_latents: NDArray[np.float32],
    exact_frames: NDArray[np.uint8],
) -> Distance:
    """Means over videos; latents [videos, c, f, h, w], frames uint8 [videos, f, h, w, 3]."""
    errors = [mean_squared_errors(a[1:], b[1:]).mean() for a, b in zip(frames, exact_frames, strict=True)]
    return Distance(latent_distance(latents, exact_latents), psnr(float(np.mean(errors))))


def latent_distance(latents: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Relative L2 without frame 0, the mean over videos; both [videos, c, f, h, w]."""
    return float(
        np.mean([latent_relative_l2(a[:, 1:], b[:, 1:]).mean() for a, b in zip(latents, reference, strict=True)])
    )


@dataclass
class Outcome:
    """One variant's videos in numbers."""

    name: str
    options: dict[str, Any]
    is_preset: bool
    seconds: float
    """The whole call without loading, for all videos together."""
    unet_seconds: float
    row_forwards: int
    """U-Net forwards of one row that the settings ask for, for all videos together."""
    distance: Distance
    """From the exact videos at the same noise."""
    fine_relative_l2: float | None = None
    """Latent distance from the same noise integrated in many small steps; None where that was not run. For the exact
    settings this is their own error of discretisation.
    """
    measures: dict[str, float] = field(default_factory=dict)
    """Of the quality measures that can be had, by name."""
    speed_up_unet: float | None = None
    """The published formulation's U-Net seconds over these; None where it was not timed."""

    def record(self) -> dict[str, Any]:
        entry = asdict(self)
        if not np.isfinite(self.distance.psnr):
            entry["distance"]["psnr"] = "infinite"
        return entry


def share_of_seeds(outcome: Outcome, other_seed: Distance) -> float:
    """The variant's latent distance over that of another seed."""
    return outcome.distance.latent_relative_l2 / other_seed.latent_relative_l2


def is_kept(outcome: Outcome, other_seed: Distance) -> bool:
    """Whether its loss is clearly smaller than the distance between seeds, in latents and in pixels."""
    return share_of_seeds(outcome, other_seed) <= KEEP_BELOW and outcome.distance.psnr > other_seed.psnr


def verdicts(outcomes: Sequence[Outcome], other_seed: Distance) -> list[str]:
    """One sentence for each preset but the exact one."""
    sentences = []
    for outcome in outcomes:
        if not outcome.is_preset or outcome.distance.latent_relative_l2 == 0:
            continue
        kept = is_kept(outcome, other_seed)
        sentences.append(
            f"preset {outcome.name}: {'keep' if kept else 'drop'}; its distance from exact is "
            f"{share_of_seeds(outcome, other_seed):.0%} of another seed's (at most {KEEP_BELOW:.0%} is clearly smaller)"
        )
    return sentences
