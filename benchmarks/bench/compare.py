"""Two records of the same kind, row by row: faster, slower, no difference shown, or too few samples; and whether they
may be compared at all: same bundle, same settings, same machine.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from ...errors import UserError
from .record import Record, Row
from .statistics import FASTER, NO_DIFFERENCE, SLOWER, TOO_FEW, Interval, cell, ratio_interval, seconds, verdict
from .tables import rich_table

_NEEDED = {
    "bundle": ("sha256",),
    "machine": (
        *("cpu", "architecture", "physical_cores", "logical_cores", "usable_cores", "instruction_sets"),
        *("memory_bytes", "system", "gpus"),
    ),
    "settings": ("rounds", "warmup", "resident", "threads"),
    "versions": ("python", "consisti2v-rt", "numpy"),
}
_NEEDED_BY_KIND: dict[str, dict[str, tuple[str, ...]]] = {
    "latency": {"settings": ("image_sha256", "prompt", "num_inference_steps", "seed")},
    "side_by_side": {"settings": ("seed", "timestep", "frame_stride")},
    "scaling": {"settings": ("image_sha256",), "bundle": ("models",)},
}
_COLOURS = {FASTER: "green", SLOWER: "red", TOO_FEW: "yellow"}


# -- whether they may be compared --------------------------------------------------------------------------------------


def missing_fields(record: Record) -> list[str]:
    """Entries that a comparison needs and this record lacks, such as ``machine.system``."""
    more = _NEEDED_BY_KIND[record.kind]
    needed = [(part, key) for part, keys in _NEEDED.items() for key in (*keys, *more.get(part, ()))]
    return [f"{part}.{key}" for part, key in needed if key not in getattr(record, part)]


def check_comparable(before: Record, after: Record, names: tuple[str, str], *, force: bool) -> dict[str, list[str]]:
    """Refuse records that were not measured alike.

    Args:
        names: of the two files, for the message.
        force: compare anyway.

    Returns:
        With `force`, what would have been refused: part -> differences.

    Raises:
        UserError: the bundle, settings or machine differ, or a record does not say what they were.
    """
    if before.kind != after.kind:
        raise UserError(f"a record of kind {before.kind} cannot be compared with one of kind {after.kind}.")
    lacking = [
        f"{name} lacks {', '.join(fields)}"
        for name, record in zip(names, (before, after), strict=True)
        if (fields := missing_fields(record))
    ]
    parts = {
        "bundle": _bundle_differences(before.bundle, after.bundle),
        # More rounds measure the same thing better.
        "settings": _differences({**before.settings, "rounds": 0}, {**after.settings, "rounds": 0}),
        "machine": _differences(before.machine, after.machine),
    }
    found = {part: listed for part, differences in parts.items() if (listed := list(differences))}
    if lacking and not force:
        raise UserError(
            f"{'; '.join(lacking)}: it does not say what ran, so measure again with this version, or compare anyway "
            "with --force."
        )
    if found and not force:
        words = "; ".join(f"{part}: {', '.join(differences)}" for part, differences in found.items())
        raise UserError(
            f"the two records were not measured alike ({words}): measure both alike, or compare anyway with --force."
        )
    return {**found, **({"fields": lacking} if lacking else {})}


def notes(before: Record, after: Record) -> list[str]:
    """Differences that a comparison is often made for, one sentence each: versions, and distance from the reference."""
    warnings = [f"The versions differ: {difference}." for difference in _differences(before.versions, after.versions)]
    now = {target.name: target.relative_l2 for target in after.targets}
    for target in before.targets:
        first, second = target.relative_l2, now.get(target.name)
        if first and second and second > 3 * first:
            warnings.append(
                f"{target.name} is further from the published formulation: relative L2 {first:.1e}, now {second:.1e}."
            )
    return warnings


def _bundle_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    """By the hash of the manifest, which holds that of every file; names and sizes say no more."""
    if first.get("sha256") != second.get("sha256"):
        named = (f"{_short(entry.get('sha256'), 12)} ({entry.get('name')})" for entry in (first, second))
        yield f"sha256 {' and '.join(named)}"
    one, other = first.get("models") or {}, second.get("models") or {}
    # Points that one record alone has are not compared.
    for point in sorted(one.keys() & other.keys()):
        if one[point] != other[point]:
            yield f"model of {point} {_short(one[point], 12)} and {_short(other[point], 12)}"


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted({*first, *second}):
        one, other = (held.get(key, "absent") for held in (first, second))
        same = one == other
        if key == "memory_bytes" and all(isinstance(value, int | float) for value in (one, other)):
            # The firmware and the kernel keep a little memory for themselves, not always the same.
            same = math.isclose(one, other, rel_tol=0.02)
        elif key == "gpus" and all(isinstance(value, list) for value in (one, other)):
            # A driver is a version: it is what a comparison may be made for.
            same = [{**gpu, "driver": ""} for gpu in one] == [{**gpu, "driver": ""} for gpu in other]
        if not same:
            yield f"{key} {_short(one)} and {_short(other)}"


def _short(value: object, most: int = 60) -> str:
    text = str(value)
    return text if len(text) <= most else text[: most - 3] + "..."


# -- row by row --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One row in both records."""

    target: str
    row: str
    before: Row
    after: Row
    ratio: Interval | None
    """Of the medians, after over before; None with too few samples."""

    @property
    def verdict(self) -> str:
        return verdict(self.ratio)


def compare_records(before: Record, after: Record) -> tuple[list[Comparison], list[str]]:
    """Every row that both have, and the names of those that cannot be compared.

    Raises:
        UserError: without a common row.
    """
    firsts, seconds_ = (
        {(target.name, row.name): row for target in record.targets for row in target.rows if row.seconds}
        for record in (before, after)
    )
    rows, left_out = [], []
    for key in dict.fromkeys([*firsts, *seconds_]):
        one, other = firsts.get(key), seconds_.get(key)
        if one is None or other is None:
            left_out.append(f"{' '.join(key)} (only {'after' if one is None else 'before'})")
        elif min(*one.seconds, *other.seconds) <= 0:
            # What took no time at all, such as loading what is loaded, has no ratio.
            left_out.append(f"{' '.join(key)} (took no time)")
        else:
            rows.append(Comparison(*key, one, other, ratio_interval(other.seconds, one.seconds, paired=False)))
    if not rows:
        raise UserError("the two records have no row in common: measure the same backends and stages twice.")
    return rows, left_out


def comparison_table(rows: Sequence[Comparison], *, forced: bool) -> Table:
    """One line a row, under the name of its target; `forced` stands with every verdict."""
    lines: list[list[str]] = []
    for index, row in enumerate(rows):
        if index == 0 or row.target != rows[index - 1].target:
            lines.append([f"[bold]{escape(row.target)}[/]"])
        words, colour = f"{row.verdict}, forced" if forced else row.verdict, _COLOURS.get(row.verdict)
        medians = [statistics.median(side.seconds) for side in (row.before, row.after)]
        lines.append(
            [
                f"  {escape(row.row)}",
                *(cell(seconds(median)) for median in medians),
                _change(medians[1] / medians[0]),
                "" if row.ratio is None else f"{_change(row.ratio.low)} to {_change(row.ratio.high)}",
                f"{len(row.before.seconds)}, {len(row.after.seconds)}",
                f"[{colour}]{words}[/]" if colour else words,
            ]
        )
    return rich_table("", ("", "before", "after", "change", "95 % interval", "rounds", ""), lines, pad=0)


def summary(rows: Sequence[Comparison], forced: Sequence[str] = ()) -> str:
    """``2 faster, 7 no difference shown``; and the parts that differ where the comparison was forced."""
    counts = Counter(row.verdict for row in rows)
    message = ", ".join(f"{counts[word]} {word}" for word in (FASTER, SLOWER, NO_DIFFERENCE, TOO_FEW) if counts[word])
    return f"{message}; compared by force, not measured alike: {', '.join(forced)}" if forced else message


def _change(ratio: float) -> str:
    # From ten times on a percentage is hard to read.
    return f"{ratio - 1:+.1%}" if ratio < 10 else f"x{ratio:.3g}"
