"""Records as tables for a terminal."""

from __future__ import annotations

import statistics

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .intervals import (
    FEW_ROUNDS,
    INTERVAL,
    has_few_rounds,
    interval_words,
    rounds_words,
    share_outside_words,
    speed_up_words,
)
from .latency import VIDEO
from .record import Record, Row, Subject
from .subjects_of_bundle import REFERENCE
from .units import cell, gibibytes, mebibytes, seconds


def show(record: Record, console: Console) -> None:
    """Print a record."""
    console.print(f"[bold]{escape(record.bundle['name'])}[/]: {escape(record.what)}", highlight=False)
    if record.kind == "latency":
        for subject in record.subjects:
            if subject.unavailable is None:
                console.print(_stage_table(record, subject))
    else:
        console.print(_forward_table(record) if record.kind == "side_by_side" else _scaling_table(record))
    lines = latency_lines(record) if record.kind == "latency" else []
    few = [FEW_ROUNDS] if has_few_rounds(record) else []
    for line in (*lines, *unavailable_lines(record), *few, machine_line(record)):
        console.print(escape(line), highlight=False)


def machine_line(record: Record) -> str:
    """Processor, cores, memory, system and GPUs in one line."""
    machine = record.machine
    gpus = "".join(f", {gpu['name']}" for gpu in machine["gpus"])
    return (
        f"{machine['cpu']}, {machine['usable_cores']} cores, {gibibytes(machine['memory_bytes'])}, "
        f"{machine['system']}{gpus}"
    )


def latency_lines(record: Record) -> list[str]:
    """Frames a second, cost of the first run, memory, energy and installed size, one sentence each."""
    lines = []
    for subject in record.subjects:
        video = subject.row(VIDEO)
        if video is None:
            continue
        frames, median = record.bundle["frames"], video.median
        lines.append(
            f"{subject.name}: {seconds(median)} a video ({interval_words(video.seconds)}), "
            f"{frames / median:.2f} frames a second."
        )
        first = subject.first
        lines.append(
            f"Spent once: start {seconds(first['start'])}, bundle opened and verified {seconds(first['open'])}, stages "
            f"loaded {seconds(first['load'])}, first run {seconds(first['first_run'])} longer than later ones."
        )
        load = subject.row("load")
        if load is not None:
            lines.append(f"Loading in a later video: {seconds(load.median)}.")
        unet, loop = subject.row("U-Net"), subject.row("guidance and scheduler")
        if unet is not None and loop is not None and unet.median + loop.median > 0:
            lines.append(f"Of a step, {share_outside_words(unet, loop)} is spent outside the U-Net's session.")
        lines.append(f"Peak memory: {memory_words(subject)}.")
        if subject.energy_joules:
            joules = interval_words(subject.energy_joules, lambda value: f"{value:.1f} J")
            lines.append(f"Energy: {statistics.median(subject.energy_joules):.1f} J a video ({joules}).")
    total = sum(record.runtime_bytes.values())
    largest = ", ".join(f"{name} {mebibytes(size)}" for name, size in list(record.runtime_bytes.items())[:4])
    lines.append(f"Installed size of the runtime: {mebibytes(total)} ({largest}, ...).")
    return lines


def memory_words(subject: Subject) -> str:
    parts = [gibibytes(subject.host_peak_bytes or 0)]
    if subject.device_peak_bytes is not None:
        parts.append(f"{gibibytes(subject.device_peak_bytes)} on the device")
    return ", ".join(parts)


def _stage_table(record: Record, subject: Subject) -> Table:
    table = _table(subject.name, "stage", "median", INTERVAL, "rounds", "share", "runs", "a run", "first")
    video = subject.row(VIDEO)
    assert video is not None
    for row in subject.rows:
        share = row.median / video.median
        table.add_row(
            row.name,
            *spread(row),
            f"{share:.1%}",
            f"{row.runs}" if row.runs > 1 else "",
            cell(seconds(row.median / row.runs)) if row.runs > 1 else "",
            "" if row.first is None else cell(seconds(row.first)),
            end_section=row is subject.rows[-2],
        )
    return table


def _forward_table(record: Record) -> Table:
    table = _table("", "", "median", INTERVAL, "rounds", "speed-up", "L2", "once", "memory")
    for subject in record.subjects:
        if subject.unavailable is None:
            table.add_row(
                subject.name,
                *spread(subject.rows[0]),
                cell(speed_up_words(record, subject)),
                "-" if subject.name == REFERENCE else distance(subject),
                cell(seconds(sum(subject.first.values()))),
                cell(memory_words(subject)),
            )
    table.caption = (
        "speed-up, L2: against the published formulation, torch eager, fp32\n"
        "once: start, load, and what the first run took longer than later ones"
    )
    table.caption_justify = "left"
    return table


def distance(subject: Subject) -> str:
    """Relative L2 against the float32 published formulation; of that itself, its name."""
    if subject.name == REFERENCE:
        return "reference"
    return "" if subject.relative_l2 is None else f"{subject.relative_l2:.1e}"


def _scaling_table(record: Record) -> Table:
    table = _table("", "", "median", INTERVAL, "rounds")
    for subject in record.subjects:
        for row in subject.rows:
            table.add_row(row.name, *spread(row))
    return table


def spread(row: Row) -> list[str]:
    """Median, interval and number of rounds as cells."""
    return [cell(seconds(row.median)), cell(interval_words(row.seconds)), cell(rounds_words(row.seconds))]


def unavailable_lines(record: Record) -> list[str]:
    """One line for every reason, with all rows it holds back."""
    names: dict[str, list[str]] = {}
    for subject in record.subjects:
        if subject.unavailable is not None:
            names.setdefault(subject.unavailable.rstrip("."), []).append(subject.name)
        # Of a scaling, single points may fail: too large for the memory, for example.
        for point, reason in subject.facts.get("failed", {}).items():
            names.setdefault(reason.rstrip("."), []).append(point)
    return [f"Not measured: {', '.join(held)}: {reason}." for reason, held in names.items()]


def _table(title: str, *headers: str) -> Table:
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=0)
    for index, header in enumerate(headers):
        table.add_column(header, justify="left" if index == 0 else "right", no_wrap=index == 0)
    return table
