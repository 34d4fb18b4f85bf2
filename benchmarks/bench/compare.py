"""Two records of the same kind, row by row: faster, slower, no difference shown, or too few samples."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ...errors import UserError
from .record import Record, Row, Subject
from .statistics import FASTER, NO_DIFFERENCE, SLOWER, TOO_FEW, Interval, ratio_interval, verdict
from .units import cell, seconds

# From here on a percentage is hard to read.
_LARGE = 10
_COLOURS = {FASTER: "green", SLOWER: "red", TOO_FEW: "yellow"}


@dataclass(frozen=True)
class Comparison:
    """One row in both records."""

    subject: str
    row: str
    before: float
    after: float
    """Medians in seconds."""
    rounds: tuple[int, int]
    """Samples of each."""
    ratio: Interval | None
    """Of the medians, after over before; None with too few samples."""
    verdict: str


def compare_records(before: Record, after: Record) -> tuple[list[Comparison], list[str]]:
    """Every row that both have, and the names of those that cannot be compared.

    Raises:
        UserError: without a common row.
    """
    rows, left_out = [], []
    firsts, seconds_ = _rows(before), _rows(after)
    for key in dict.fromkeys([*firsts, *seconds_]):
        if key not in firsts or key not in seconds_:
            left_out.append(f"{' '.join(key)} (only {'before' if key in firsts else 'after'})")
        elif min(*firsts[key].seconds, *seconds_[key].seconds) <= 0:
            # What took no time at all, such as loading what is loaded, has no ratio.
            left_out.append(f"{' '.join(key)} (took no time)")
        else:
            rows.append(_compare(key[0], firsts[key], seconds_[key]))
    if not rows:
        raise UserError("the two records have no row in common: measure the same backends and stages twice.")
    return rows, left_out


def comparison_table(rows: Sequence[Comparison], *, forced: bool) -> Table:
    """One line a row, under the name of its subject; `forced` stands with every verdict."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, header in enumerate(("", "before", "after", "change", "95 % interval", "rounds", "")):
        table.add_column(header, justify="left" if index in (0, 6) else "right")
    previous = None
    for row in rows:
        if row.subject != previous:
            table.add_row(f"[bold]{escape(row.subject)}[/]")
        colour = _COLOURS.get(row.verdict)
        words = f"{row.verdict}, forced" if forced else row.verdict
        table.add_row(
            f"  {escape(row.row)}",
            cell(seconds(row.before)),
            cell(seconds(row.after)),
            _change(row.after / row.before),
            "" if row.ratio is None else f"{_change(row.ratio.low)} to {_change(row.ratio.high)}",
            cell(f"{row.rounds[0]}, {row.rounds[1]}"),
            f"[{colour}]{words}[/]" if colour else words,
        )
        previous = row.subject
    return table


def summary(rows: Sequence[Comparison], forced: Sequence[str] = ()) -> str:
    """``2 faster, 7 no difference shown``; and the parts that differ where the comparison was forced."""
    counts = Counter(row.verdict for row in rows)
    told = ", ".join(f"{counts[word]} {word}" for word in (FASTER, SLOWER, NO_DIFFERENCE, TOO_FEW) if counts[word])
    return f"{told}; compared by force, not measured alike: {', '.join(forced)}" if forced else told


def _change(ratio: float) -> str:
    return f"{ratio - 1:+.1%}" if ratio < _LARGE else f"x{ratio:.3g}"


def _compare(subject: str, before: Row, after: Row) -> Comparison:
    ratio = ratio_interval(after.seconds, before.seconds, paired=False)
    return Comparison(
        subject,
        before.name,
        statistics.median(before.seconds),
        statistics.median(after.seconds),
        (len(before.seconds), len(after.seconds)),
        ratio,
        verdict(ratio),
    )


def _rows(record: Record) -> dict[tuple[str, str], Row]:
    """By the names of subject and row."""
    return {_key(subject, row): row for subject in record.subjects for row in subject.rows if row.seconds}


def _key(subject: Subject, row: Row) -> tuple[str, str]:
    return subject.name, row.name
