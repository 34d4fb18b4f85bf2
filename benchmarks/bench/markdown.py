"""Records and predictions as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .intervals import FEW_ROUNDS, INTERVAL, has_few_rounds, interval_words, rounds_words, speed_up_words
from .latency import VIDEO
from .record import Record, Row, Subject
from .scaling import UNITS, WORK, split_name
from .tables import distance, latency_lines, machine_line, memory_words, unavailable_lines
from .units import seconds


def record_section(record: Record, link: str, picture: str) -> str:
    """A record's heading, table, facts and picture; `link` and `picture` are paths from the Markdown file."""
    lines = [f"**{_name(record)}: {record.what}** ([record]({link}))", ""]
    if record.kind == "latency":
        for subject in record.subjects:
            if subject.unavailable is None:
                lines += [*_stages(subject), ""]
        lines += [f"- {line}" for line in latency_lines(record)]
    elif record.kind == "side_by_side":
        lines += _forwards(record)
    else:
        lines += _scaling(record)
    notes = [
        *unavailable_lines(record),
        *([FEW_ROUNDS] if has_few_rounds(record) else []),
        f"Measured on {machine_line(record)}; {_versions(record)}.",
    ]
    lines += ["", *(f"- {note}" for note in notes), "", f"![{_name(record)}: {record.what}]({picture})", ""]
    return "\n".join(lines)


def prediction_section(prediction: Mapping[str, Any], link: str, picture: str) -> str:
    """A prediction's summary and its roofline."""
    gpu = prediction["gpu"]
    watts = f" at {gpu['power']:g} W" if gpu["power"] else ""
    title = f"{gpu['name']}{watts}, {prediction['precision']}"
    rows = [
        [
            f"{video['name']}: {video['steps']} steps",
            *(f"{video[key]:.1f} s" for key in ("floor_fp16", "stated")),
            "" if video["fitted"] is None else f"{video['fitted']:.1f} s",
        ]
        for video in prediction["videos"]
    ]
    fitted = any(video["fitted"] is not None for video in prediction["videos"])
    headers = ["", "roofline floor", "stated efficiencies", *(["fitted"] if fitted else [])]
    lines = [f"**Predicted, not measured: {title}** ([numbers]({link}))", ""]
    lines += _table(headers, [row[: len(headers)] for row in rows])
    lines += [
        "",
        *(f"- {sentence}" for sentence in prediction["summary"][1:]),
        "",
        f"![Roofline, {title}]({picture})",
        "",
    ]
    return "\n".join(lines)


def _stages(subject: Subject) -> list[str]:
    video = subject.row(VIDEO)
    assert video is not None
    rows = []
    for row in subject.rows:
        once = seconds(row.median / row.runs) if row.runs > 1 else ""
        runs = f"{row.runs} x {once}" if once else ""
        rows.append([row.name, *_measured(row), f"{row.median / video.median:.1%}", runs])
    return _table([subject.name, *_MEASURED, "share", ""], rows)


def _forwards(record: Record) -> list[str]:
    rows = [
        [
            subject.name,
            *_measured(subject.rows[0]),
            speed_up_words(record, subject),
            distance(subject),
            memory_words(subject),
        ]
        for subject in record.subjects
        if subject.unavailable is None
    ]
    return _table(["", *_MEASURED, "speed-up", "relative L2", "peak memory"], rows)


def _scaling(record: Record) -> list[str]:
    rows = []
    for subject in record.subjects:
        for row in subject.rows:
            axis, value = split_name(row.name)
            rows.append([f"{UNITS[axis]} {value} ({WORK[axis]})", *_measured(row)])
    return _table(["", *_MEASURED], rows)


_MEASURED = ("median", INTERVAL, "rounds")


def _measured(row: Row) -> list[str]:
    return [seconds(row.median), interval_words(row.seconds), rounds_words(row.seconds)]


def _versions(record: Record) -> str:
    return ", ".join(f"{name} {version}" for name, version in record.versions.items())


def _name(record: Record) -> str:
    return str(record.bundle["name"])


def _table(headers: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    headers = list(headers)
    lines = [headers, ["---"] + ["---:"] * (len(headers) - 1), *(list(row) for row in rows)]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]
