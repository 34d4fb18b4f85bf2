"""The table of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from .measures.registry import MOTION
from .result import MeasureResult

_ARROWS = {"higher": "higher", "lower": "lower", "neither": ""}


def results_table(results: Sequence[MeasureResult], videos: int) -> Group:
    """One row a measure; what a frozen video would win stands beside how much moves. Below, what is unavailable."""
    motion = _motion(results)
    table = Table(title=f"{videos} video(s)", title_justify="left")
    table.add_column("measure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("better")
    table.add_column("at dynamic degree")
    table.add_column("network")
    missing = Table(title="unavailable", title_justify="left")
    missing.add_column("measure", no_wrap=True)
    missing.add_column("why")
    for result in results:
        measure, scores = result.measure, result.scores
        if scores is None:
            # A reason may name an extra in brackets, which is no markup.
            missing.add_row(measure.name, Text(result.reason or ""))
            continue
        table.add_row(
            measure.name,
            f"{scores.value:.4f}",
            _ARROWS[measure.better],
            motion if measure.best_when_frozen else "",
            Text(f"{scores.network.name} ({scores.network.weights})" if scores.network else "none"),
        )
    return Group(*(part for part in (table, missing) if part.row_count))


def _motion(results: Sequence[MeasureResult]) -> str:
    """The dynamic degrees there are, each under its own name."""
    found = {result.measure.name: result.scores.value for result in results if result.scores is not None}
    shown = [
        f"{label} {found[name]:.2f}" for name, label in zip(MOTION, ("RAFT", "DIS"), strict=False) if name in found
    ]
    if MOTION[2] in found:
        shown.append(f"{found[MOTION[2]]:.2f} px")
    return ", ".join(shown) or "unavailable"
