"""The table of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from .measure import MeasureResult
from .measures import DYNAMICS

_LABELS = ("RAFT {:.2f}", "DIS {:.2f}", "{:.2f} px")


def results_table(results: Sequence[MeasureResult], videos: int) -> Group:
    """One row a measure; what a frozen video would win stands beside how much moves. Below, what is unavailable."""
    found = {result.measure.name: result.scores.value for result in results if result.scores is not None}
    # The dynamic degrees there are, each under its own name.
    shown = [label.format(found[name]) for name, label in zip(DYNAMICS, _LABELS, strict=True) if name in found]
    motion = ", ".join(shown) or "unavailable"
    table = Table(title=f"{videos} video(s)", title_justify="left")
    table.add_column("measure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    for heading in ("better", "at dynamic degree", "network"):
        table.add_column(heading)
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
            "" if measure.better == "neither" else measure.better,
            motion if measure.best_when_frozen else "",
            Text(f"{scores.network.name} ({scores.network.weights})" if scores.network else "none"),
        )
    return Group(*(part for part in (table, missing) if part.row_count))
