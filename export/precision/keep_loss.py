"""How many of an ordered row of changes a limit on the loss allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_MOST_TRIALS = 6
"""Between none and all: to a 64th of them."""

Made = TypeVar("Made")


def most_within(
    make: Callable[[int], Made], count: int, loss: Callable[[Made], float], limit: float | None
) -> tuple[int, Made]:
    """The largest number of changes whose result keeps the limit, by halving.

    Args:
        make: makes the result with so many of the first changes; the last one made stays.
        count: of all changes.
        loss: of a result.
        limit: None: all changes are made.

    Returns:
        The number and its result, made last. No change at all where even that does not keep the limit: the caller
        judges it.
    """
    made = make(count)
    if limit is None or count == 0 or loss(made) <= limit:
        return count, made
    best, over, last = 0, count, count
    for _ in range(_MOST_TRIALS):
        if over - best < 2:
            break
        last = (best + over) // 2
        made = make(last)
        if loss(made) <= limit:
            best = last
        else:
            over = last
    return best, made if last == best else make(best)
