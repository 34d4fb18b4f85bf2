"""The simulation of a fleet: against queueing theory, and at its limits."""

from __future__ import annotations

import numpy as np
import pytest

from consisti2v_rt.benchmarks.serving.fleet import Fleet, Front, most_cards, simulate

IDLE = Front(0.0, 0.0)


@pytest.mark.slow
def test_one_card_waits_as_the_pollaczek_khinchine_formula_says() -> None:
    for load in (0.5, 0.8):
        out = simulate(Fleet(1, load, 10.0, 1, IDLE, hours_between_failures=1e12), videos=200_000)
        assert out.card_use == pytest.approx(load, rel=0.02)
        # M/D/1: services of one length, arrivals at random.
        assert out.mean_wait == pytest.approx(load / (2 * (1 - load)) * 10, rel=0.05)


def test_more_cards_wait_less_and_batches_save_time() -> None:
    waits = [simulate(Fleet(cards, 0.9, 10.0, 1, IDLE)).p99_wait for cards in (1, 4, 16)]
    assert waits == sorted(waits, reverse=True)
    single, batched = (simulate(Fleet(2, 0.95, 10.0, 1, IDLE, batch=size, marginal=0.5)) for size in (1, 4))
    assert batched.p99_wait < single.p99_wait
    assert batched.card_seconds_per_video < single.card_seconds_per_video == pytest.approx(10.0)


def test_a_failure_repeats_videos_and_loses_none() -> None:
    out = simulate(Fleet(3, 0.5, 60.0, 1, IDLE, hours_between_failures=1.0), videos=5_000)
    assert out.videos == 5_000 and out.repeated == pytest.approx(5_000 / 60, rel=0.35)
    assert out.card_seconds_per_video > 60


def test_the_front_is_full_at_the_stated_number_of_cards() -> None:
    front = Front(0.01, 0.001)
    limit = most_cards(12.0, 50, front)
    assert limit == pytest.approx(200)
    below, above = (simulate(Fleet(cards, 1.0, 12.0, 50, front), videos=4_000) for cards in (150, 300))
    assert below.front_use < 0.9 < above.front_use
    assert np.isfinite(above.p99_wait) and above.p99_wait > below.p99_wait
