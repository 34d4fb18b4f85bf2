"""Medians, spreads, and when two sets of timings differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

SMALLEST_DIFFERENCE = 0.03
"""Less than this is never called a difference: clocks, caches and the room temperature do as much."""

# Student's t, two-sided 95 %, for 1, 2, ... degrees of freedom.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)
_T_LARGE = 2.1
# Mean range of n normal samples in standard deviations (Tippett 1925).
_RANGE = {2: 1.128, 3: 1.693, 4: 2.059}
_MAD_TO_DEVIATION = 1.4826
# Standard error of a median over that of a mean.
_MEDIAN_FACTOR = math.sqrt(math.pi / 2)


def deviation_of_logs(samples: Sequence[float]) -> float:
    """Standard deviation of the samples' logarithms: of relative differences, robustly.

    From five samples on by the median absolute deviation, so that one disturbed run does not count; below by the range.
    """
    logs = [math.log(sample) for sample in samples]
    if len(logs) < 2:
        return 0.0
    if len(logs) in _RANGE:
        return (max(logs) - min(logs)) / _RANGE[len(logs)]
    middle = statistics.median(logs)
    return _MAD_TO_DEVIATION * statistics.median(abs(value - middle) for value in logs)


def noise_of_ratio(first: Sequence[float], second: Sequence[float]) -> float | None:
    """How far from 1 the ratio of two medians may be by chance: half the width of its 95 % interval, as a logarithm.

    Returns:
        None with fewer than two samples on a side: one run says nothing about chance.
    """
    if min(len(first), len(second)) < 2:
        return None
    degrees = len(first) + len(second) - 2
    t = _T[degrees - 1] if degrees <= len(_T) else _T_LARGE
    variance = sum(deviation_of_logs(side) ** 2 / len(side) for side in (first, second))
    return t * _MEDIAN_FACTOR * math.sqrt(variance)


def verdict(before: Sequence[float], after: Sequence[float]) -> str:
    """ "faster", "slower", "within noise" or "too few samples", of timings `after` against `before`.

    They differ where the ratio of the medians is further from 1 than both :data:`SMALLEST_DIFFERENCE` and its 95 %
    interval (:func:`noise_of_ratio`).
    """
    noise = noise_of_ratio(before, after)
    if noise is None:
        return "too few samples"
    change = math.log(statistics.median(after) / statistics.median(before))
    if abs(change) <= max(noise, math.log1p(SMALLEST_DIFFERENCE)):
        return "within noise"
    return "slower" if change > 0 else "faster"
