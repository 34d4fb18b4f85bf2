"""Medians and ratios of medians with their intervals, what a comparison may conclude from them, and both in words."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

FEWEST_ROUNDS = 5
"""With fewer rounds no interval is given: the bootstrap interval of four samples misses the true median too often."""
WIDEST = 0.10
"""An interval that is wider than this share of the ratio needs more rounds before it says anything."""
SMALLEST_DIFFERENCE = 0.03
"""Ratios closer to 1 are not called a difference: clocks and caches move that much from one process to the next."""
RESAMPLES = 10_000
SEED = 0

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
    return ratio_interval(samples, [1.0] * len(samples), paired=True)


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
    generator = np.random.default_rng(SEED)
    draws = generator.integers(0, len(above), (RESAMPLES, len(above)))
    together = paired and len(above) == len(below)
    other = draws if together else generator.integers(0, len(below), (RESAMPLES, len(below)))
    ratios = np.median(np.asarray(above)[draws], axis=1) / np.median(np.asarray(below)[other], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Interval(statistics.median(above) / statistics.median(below), float(low), float(high))


def verdict(ratio: Interval | None) -> str:
    """What follows from the ratio of the medians, after over before; :data:`METHOD` says it in words."""
    if ratio is None or ratio.width > WIDEST:
        return TOO_FEW
    if ratio.low <= 1 <= ratio.high or abs(ratio.value - 1) < SMALLEST_DIFFERENCE:
        return NO_DIFFERENCE
    return SLOWER if ratio.value > 1 else FASTER


# -- in words ----------------------------------------------------------------------------------------------------------

INTERVAL = "95 % interval"
FEW_ROUNDS = (
    f"Fewer than {FEWEST_ROUNDS} rounds give no interval: the smallest and the largest of them stand in its place."
)


def three_digits(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def seconds(value: float) -> str:
    """``1.23 s``, ``45.6 ms``, ``789 µs``."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if value * factor >= 0.9995:
            return f"{three_digits(value * factor)} {unit}"
    return f"{three_digits(value * 1e6)} µs"


def cell(text: str) -> str:
    """For a table: a number and its unit are not torn apart."""
    return re.sub(r"(?<=\d) (?=[^\W\d])", "\N{NO-BREAK SPACE}", text)


def gibibytes(count: float) -> str:
    """Bytes in GiB, with three digits."""
    return f"{three_digits(count / 2**30)} GiB"


def rounds_words(samples: Sequence[float]) -> str:
    """``5``; or ``2 (few)``."""
    return str(len(samples)) if len(samples) >= FEWEST_ROUNDS else f"{len(samples)} (few)"


def interval_words(samples: Sequence[float], unit: Callable[[float], str] = seconds) -> str:
    """``590 ms to 694 ms``, the median's interval; of too few samples ``min to max 114 s to 124 s``."""
    found = median_interval(samples)
    if found is not None:
        return f"{unit(found.low)} to {unit(found.high)}"
    return "one run" if len(samples) == 1 else f"min to max {unit(min(samples))} to {unit(max(samples))}"


def ratio_words(found: Interval | None, form: str = "{:.2f}") -> str:
    """``1.52 to 1.80``; or ``no interval``."""
    return "no interval" if found is None else f"{form.format(found.low)} to {form.format(found.high)}"
