"""Medians, speed-ups and shares of a record in words, each with its interval, or with what stands for one."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from .record import Record, Row, Subject
from .statistics import FEWEST_ROUNDS, Interval, median_interval, ratio_interval
from .subjects_of_bundle import REFERENCE
from .units import seconds

INTERVAL = "95 % interval"
FEW_ROUNDS = (
    f"Fewer than {FEWEST_ROUNDS} rounds give no interval: the smallest and the largest of them stand in its place."
)


def has_few_rounds(record: Record) -> bool:
    """Whether any row of the record has too few samples for an interval."""
    return any(len(row.seconds) < FEWEST_ROUNDS for subject in record.subjects for row in subject.rows)


def rounds_words(samples: Sequence[float]) -> str:
    """``5``; or ``2 (few)``."""
    return str(len(samples)) if len(samples) >= FEWEST_ROUNDS else f"{len(samples)} (few)"


def interval_words(samples: Sequence[float], unit: Callable[[float], str] = seconds) -> str:
    """``590 ms to 694 ms``, the median's interval; of too few samples ``min to max 114 s to 124 s``."""
    found = median_interval(samples)
    if found is not None:
        return f"{unit(found.low)} to {unit(found.high)}"
    if len(samples) == 1:
        return "one run"
    return f"min to max {unit(min(samples))} to {unit(max(samples))}"


def speed_up_words(record: Record, subject: Subject) -> str:
    """``1.66x (1.52 to 1.80)`` over the published formulation; empty where that was not measured."""
    if subject.speed_up is None:
        return ""
    if subject.name == REFERENCE:
        return "1.00x"
    reference = next((entry for entry in record.subjects if entry.name == REFERENCE and entry.rows), None)
    found = None
    if reference is not None:
        found = ratio_interval(reference.rows[0].seconds, subject.rows[0].seconds, paired=_in_turns(record))
    return f"{subject.speed_up:.2f}x ({ratio_words(found)})"


def ratio_words(found: Interval | None) -> str:
    """``1.52 to 1.80``; or ``no interval``."""
    return "no interval" if found is None else f"{found.low:.2f} to {found.high:.2f}"


def share_outside_words(unet: Row, loop: Row) -> str:
    """Of a step's time, the share that the U-Net's session does not take: ``0.16% (0.15% to 0.18%)``."""
    steps = [inside + outside for inside, outside in zip(unet.seconds, loop.seconds, strict=True)]
    value = statistics.median(loop.seconds) / statistics.median(steps)
    found = ratio_interval(loop.seconds, steps, paired=True)
    return f"{value:.2%} ({'no interval' if found is None else f'{found.low:.2%} to {found.high:.2%}'})"


def _in_turns(record: Record) -> bool:
    """Whether round n of every subject followed on round n of the one before it."""
    return bool(record.settings.get("resident"))
