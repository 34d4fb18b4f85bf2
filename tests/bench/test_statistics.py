"""The bootstrap interval of a ratio of medians, and what may be concluded from it."""

from __future__ import annotations

import random

import pytest

from consisti2v_rt.benchmarks.bench.statistics import (
    FASTER,
    NO_DIFFERENCE,
    SLOWER,
    SMALLEST_DIFFERENCE,
    TOO_FEW,
    WIDEST,
    Interval,
    median_interval,
    ratio_interval,
    verdict,
)

CALM = [1.0, 1.01, 0.99, 1.02, 1.0, 0.98, 1.01]


def scaled(factor: float, samples: list[float] = CALM) -> list[float]:
    return [factor * sample for sample in samples]


def compared(before: list[float], after: list[float]) -> str:
    return verdict(ratio_interval(after, before, paired=False))


def test_a_measurement_against_itself_shows_no_difference() -> None:
    assert compared(CALM, CALM) == compared(CALM, list(reversed(CALM))) == NO_DIFFERENCE


def test_thirty_percent_is_seen_in_either_direction() -> None:
    assert compared(CALM, scaled(1.3)) == SLOWER
    assert compared(scaled(1.3), CALM) == FASTER


def test_a_wide_interval_needs_more_rounds_however_large_the_difference() -> None:
    wild = [0.6, 1.0, 1.5, 0.7, 1.4]
    assert compared(wild, scaled(1.3, wild)) == TOO_FEW
    assert compared(wild, scaled(683.54, wild)) == TOO_FEW


def test_what_is_smaller_than_the_smallest_difference_is_none_however_calm() -> None:
    still = [1.0] * 9
    assert compared(still, scaled(1 + 0.9 * SMALLEST_DIFFERENCE, still)) == NO_DIFFERENCE
    assert compared(still, scaled(1 + 1.1 * SMALLEST_DIFFERENCE, still)) == SLOWER


def test_one_disturbed_run_of_many_changes_nothing() -> None:
    disturbed = [*CALM[:-1], 10.0]
    assert compared(CALM, disturbed) == NO_DIFFERENCE
    assert compared(CALM, scaled(1.3, disturbed)) == SLOWER


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_fewer_than_five_rounds_give_no_interval(count: int) -> None:
    few = [1.0] * count
    assert median_interval(few) is None
    assert ratio_interval(few, CALM, paired=False) is None and ratio_interval(CALM, few, paired=False) is None
    assert compared(few, scaled(9)) == TOO_FEW


def test_the_limits_of_a_verdict() -> None:
    assert verdict(Interval(1.2, 1.2, 1.2 * (1 + 1.01 * WIDEST))) == TOO_FEW
    assert verdict(Interval(1.2, 1.2, 1.2 * (1 + 0.99 * WIDEST))) == SLOWER
    assert verdict(Interval(1.04, 0.999, 1.05)) == NO_DIFFERENCE
    assert verdict(Interval(0.9, 0.88, 0.92)) == FASTER


def test_the_interval_is_the_same_every_time() -> None:
    assert ratio_interval(CALM, scaled(2), paired=False) == ratio_interval(CALM, scaled(2), paired=False)


def test_in_turns_a_drift_of_the_machine_cancels() -> None:
    """Every round is slower than the one before it; the ratio is two in each."""
    drift = [1.0, 1.3, 1.7, 2.2, 2.9, 3.7]
    together = ratio_interval(scaled(2, drift), drift, paired=True)
    apart = ratio_interval(scaled(2, drift), drift, paired=False)
    assert together is not None and together.low == together.high == pytest.approx(2)
    assert apart is not None and apart.width > 1


@pytest.mark.slow
@pytest.mark.parametrize("count", [5, 15])
def test_equal_machines_are_rarely_told_apart(count: int) -> None:
    """Of intervals of ratios that are 1, about one in twenty may leave it out."""
    generator = random.Random(count)

    def measure() -> list[float]:
        return [generator.lognormvariate(0, 0.01) for _ in range(count)]

    found = [ratio_interval(measure(), measure(), paired=False) for _ in range(150)]
    missed = sum(not interval.low <= 1 <= interval.high for interval in found if interval is not None)
    assert missed < 0.12 * 150
    assert all(verdict(interval) == NO_DIFFERENCE for interval in found)
