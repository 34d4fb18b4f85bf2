"""When timings differ, and when they do not."""

from __future__ import annotations

import random

import pytest

from consisti2v_rt.benchmarks.bench.statistics import SMALLEST_DIFFERENCE, deviation_of_logs, noise_of_ratio, verdict

CALM = [1.0, 1.01, 0.99, 1.02, 1.0, 0.98, 1.01]


def scaled(factor: float, samples: list[float] = CALM) -> list[float]:
    return [factor * sample for sample in samples]


def test_a_measurement_against_itself_is_within_noise() -> None:
    assert verdict(CALM, CALM) == "within noise"
    assert verdict(CALM, list(reversed(CALM))) == "within noise"


def test_thirty_percent_is_seen_in_either_direction() -> None:
    assert verdict(CALM, scaled(1.3)) == "slower"
    assert verdict(scaled(1.3), CALM) == "faster"


def test_thirty_percent_is_not_seen_through_as_much_noise() -> None:
    wild = [0.6, 1.0, 1.5, 0.7, 1.4]
    assert verdict(wild, scaled(1.3, wild)) == "within noise"


def test_what_is_smaller_than_the_smallest_difference_is_none_however_calm() -> None:
    still = [1.0] * 9
    assert verdict(still, scaled(1 + 0.9 * SMALLEST_DIFFERENCE, still)) == "within noise"
    assert verdict(still, scaled(1 + 1.1 * SMALLEST_DIFFERENCE, still)) == "slower"


def test_one_disturbed_run_changes_nothing() -> None:
    disturbed = [*CALM[:-1], 10.0]
    assert verdict(CALM, disturbed) == "within noise"
    assert verdict(CALM, scaled(1.3, disturbed)) == "slower"


def test_a_single_run_says_nothing() -> None:
    assert noise_of_ratio([1.0], CALM) is None
    assert verdict([1.0], CALM) == verdict(CALM, [9.0]) == "too few samples"


def test_two_runs_each_need_a_large_difference() -> None:
    """With two runs that differ by 2 %, chance alone may give some 10 %."""
    pair = [1.0, 1.02]
    assert verdict(pair, scaled(1.05, pair)) == "within noise"
    assert verdict(pair, scaled(1.5, pair)) == "slower"


@pytest.mark.parametrize("count", [3, 5, 15])
def test_equal_machines_are_rarely_told_apart(count: int) -> None:
    """Of pairs of measurements that differ by chance alone, about one in twenty may be called different."""
    generator = random.Random(count)

    def measure() -> list[float]:
        return [generator.lognormvariate(0, 0.05) for _ in range(count)]

    wrong = sum(verdict(measure(), measure()) != "within noise" for _ in range(400))
    assert wrong < 0.1 * 400


def test_deviation_is_that_of_the_samples() -> None:
    generator = random.Random(0)
    samples = [generator.lognormvariate(3, 0.2) for _ in range(2000)]
    assert deviation_of_logs(samples) == pytest.approx(0.2, rel=0.1)
    triples = [deviation_of_logs(samples[i : i + 3]) for i in range(0, 1998, 3)]
    assert sum(triples) / len(triples) == pytest.approx(0.2, rel=0.1)
