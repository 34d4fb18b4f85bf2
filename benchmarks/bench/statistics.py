"""Medians and ratios of medians with their intervals, and what a comparison may conclude from them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FEWEST_ROUNDS = 5
"""With fewer rounds no interval is given: the bootstrap interval of four samples misses the true median too often."""
WIDEST = 0.10
"""An interval that is wider than this share of the ratio needs more rounds before it says anything."""
SMALLEST_DIFFERENCE = 0.03
"""Ratios closer to 1 are not called a difference: clocks and caches move that much from one process to the next."""
RESAMPLES = 10_000
SEED = 0
_TAIL = 2.5  # per cent on each side of a 95 % interval

FASTER, SLOWER, NO_DIFFERENCE, TOO_FEW = "faster", "slower", "no difference shown", "too few samples"
METHOD = (
    f"Test: ratio of the medians, after over before, with its 95 % bootstrap interval (percentiles of {RESAMPLES:,} "
    f"resamples of the rounds, each side by itself, seed {SEED}). Faster or slower: all of the interval is on one side "
    f"of 1, and the ratio is at least {SMALLEST_DIFFERENCE:.0%} away from it. Too few samples: fewer than "
    f"{FEWEST_ROUNDS} rounds, or an interval wider than {WIDEST:.0%} of the ratio."
)


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """As a share of the value."""
        return (self.high - self.low) / self.value


def median_interval(samples: Sequence[float]) -> Interval | None:
    """The median of samples, with its bootstrap interval; None with fewer than :data:`FEWEST_ROUNDS`."""
    if len(samples) < FEWEST_ROUNDS:
        return None
    return _interval(statistics.median(samples), _medians(samples, _draws(len(samples), _generator())))


def ratio_interval(above: Sequence[float], below: Sequence[float], *, paired: bool) -> Interval | None:
    """The ratio of two medians, with its bootstrap interval.

    Args:
        above: positive samples; their median is divided by that of
        below: positive samples.
        paired: both were measured in the same rounds, in turns, so that sample n of one belongs to sample n of the
            other: whole rounds are resampled. Otherwise each side is resampled by itself.

    Returns:
        None with fewer than :data:`FEWEST_ROUNDS` samples on a side.
    """
    if min(len(above), len(below)) < FEWEST_ROUNDS:
        return None
    generator = _generator()
    draws = _draws(len(above), generator)
    other = draws if paired and len(above) == len(below) else _draws(len(below), generator)
    ratio = statistics.median(above) / statistics.median(below)
    return _interval(ratio, _medians(above, draws) / _medians(below, other))


def verdict(ratio: Interval | None) -> str:
    """What follows from the ratio of the medians, after over before; :data:`METHOD` says it in words."""
    if ratio is None or ratio.width > WIDEST:
        return TOO_FEW
    if ratio.low <= 1 <= ratio.high or abs(ratio.value - 1) < SMALLEST_DIFFERENCE:
        return NO_DIFFERENCE
    return SLOWER if ratio.value > 1 else FASTER


def _generator() -> np.random.Generator:
    return np.random.default_rng(SEED)


def _draws(count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """[RESAMPLES, count]: the places of the samples in each resample."""
    return generator.integers(0, count, (RESAMPLES, count))


def _medians(samples: Sequence[float], draws: NDArray[np.int64]) -> NDArray[np.float64]:
    medians: NDArray[np.float64] = np.median(np.asarray(samples, np.float64)[draws], axis=1)
    return medians


def _interval(value: float, resampled: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(resampled, [_TAIL, 100 - _TAIL])
    return Interval(value, float(low), float(high))
