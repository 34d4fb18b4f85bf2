"""Two records of the same kind, row by row: faster, slower or within noise."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ...runtime.errors import UserError
from .record import Record, Row, Subject
from .statistics import SMALLEST_DIFFERENCE, noise_of_ratio, verdict
from .units import seconds

_COLOURS = {"faster": "green", "slower": "red"}


@dataclass(frozen=True)
class Comparison:
    """One row in both records."""

    subject: str
    row: str
    before: float
    after: float
    """Medians in seconds."""
    noise: float | None
    """How far the ratio may be from 1 by chance, as a share; None with too few samples."""
    verdict: str

    @property
    def ratio(self) -> float:
        return self.after / self.before


def compare_records(before: Record, after: Record) -> list[Comparison]:
    """Every row that both have.

    Raises:
        UserError: records of different kinds, or without a common row.
    """
    if before.kind != after.kind:
        raise UserError(f"a record of kind {before.kind} cannot be compared with one of kind {after.kind}.")
    rows = [
        _compare(subject, row, other)
        for subject, row in _rows(before)
        if (other := _find(after, subject.name, row.name)) is not None
        # What took no time at all, such as loading what is loaded, has no ratio.
        and min(*row.seconds, *other.seconds) > 0
    ]
    if not rows:
        raise UserError("the two records have no row in common: measure the same backends and stages twice.")
    return rows


def differences(before: Record, after: Record) -> list[str]:
    """What else differs between the two measurements, one sentence each."""
    found = []
    for what in ("cpu", "usable_cores", "gpus"):
        first, second = before.machine.get(what), after.machine.get(what)
        if first != second:
            found.append(f"The machines differ: {what} {_short(first)} and {_short(second)}.")
    if before.bundle.get("sha256") != after.bundle.get("sha256"):
        found.append(f"The bundles differ: {before.bundle.get('name')} and {after.bundle.get('name')}.")
    for what in sorted({*before.settings, *after.settings} - {"rounds", "warmup", "resident"}):
        first, second = before.settings.get(what), after.settings.get(what)
        if first != second:
            found.append(f"The settings differ: {what} {_short(first)} and {_short(second)}.")
    for what in sorted({*before.versions, *after.versions}):
        first, second = before.versions.get(what), after.versions.get(what)
        if first != second:
            found.append(f"The versions differ: {what} {first or 'absent'} and {second or 'absent'}.")
    for subject in before.subjects:
        other = next((entry for entry in after.subjects if entry.name == subject.name), None)
        first, second = subject.relative_l2, None if other is None else other.relative_l2
        if first and second and second > 3 * first:
            found.append(
                f"{subject.name} is further from the published formulation: relative L2 {first:.1e}, now {second:.1e}."
            )
    return found


def comparison_table(rows: list[Comparison]) -> Table:
    """One line a row, under the name of its subject."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    for index, header in enumerate(("", "before", "after", "change", "noise", "")):
        table.add_column(header, justify="left" if index in (0, 5) else "right", no_wrap=True)
    previous = None
    for row in rows:
        if row.subject != previous:
            table.add_row(f"[bold]{escape(row.subject)}[/]")
        colour = _COLOURS.get(row.verdict)
        table.add_row(
            f"  {escape(row.row)}",
            seconds(row.before),
            seconds(row.after),
            f"{row.ratio - 1:+.1%}",
            _noise_cell(row.noise),
            f"[{colour}]{row.verdict}[/]" if colour else row.verdict,
        )
        previous = row.subject
    return table


def _noise_cell(noise: float | None) -> str:
    if noise is None:
        return ""
    return "over ±100%" if noise > 1 else f"±{max(noise, SMALLEST_DIFFERENCE):.1%}"


def summary(rows: list[Comparison]) -> str:
    """``2 faster, 7 within noise``."""
    counts = Counter(row.verdict for row in rows)
    order = ("faster", "slower", "within noise", "too few samples")
    return ", ".join(f"{counts[word]} {word}" for word in order if counts[word])


def _compare(subject: Subject, before: Row, after: Row) -> Comparison:
    noise = noise_of_ratio(before.seconds, after.seconds)
    return Comparison(
        subject.name,
        before.name,
        statistics.median(before.seconds),
        statistics.median(after.seconds),
        None if noise is None else math.expm1(noise),
        verdict(before.seconds, after.seconds),
    )


def _rows(record: Record) -> list[tuple[Subject, Row]]:
    return [(subject, row) for subject in record.subjects for row in subject.rows if row.seconds]


def _find(record: Record, subject: str, name: str) -> Row | None:
    found = next((entry for entry in record.subjects if entry.name == subject), None)
    row = None if found is None else found.row(name)
    return row if row is not None and row.seconds else None


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
