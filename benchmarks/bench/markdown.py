"""Records and predictions as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

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
    rounds = record.settings["rounds"]
    notes = [
        *unavailable_lines(record),
        f"{rounds} measured runs of each on {machine_line(record)}; {_versions(record)}.",
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
        rows.append([row.name, seconds(row.median), _range(row), f"{row.median / video.median:.1%}", runs])
    return _table([subject.name, "median", "min to max", "share", ""], rows)


def _forwards(record: Record) -> list[str]:
    rows = [
        [
            subject.name,
            seconds(subject.rows[0].median),
            _range(subject.rows[0]),
            "" if subject.speed_up is None else f"{subject.speed_up:.2f}x",
            distance(subject),
            memory_words(subject),
        ]
        for subject in record.subjects
        if subject.unavailable is None
    ]
    return _table(["", "median", "min to max", "speed-up", "relative L2", "peak memory"], rows)


def _scaling(record: Record) -> list[str]:
    by_axis: dict[str, list[str]] = {}
    for subject in record.subjects:
        for row in subject.rows:
            axis, value = split_name(row.name)
            by_axis.setdefault(axis, []).append(f"{value}: {seconds(row.median)}")
    return [f"- {UNITS[axis]} ({WORK[axis]}): {', '.join(points)}" for axis, points in by_axis.items()]


def _range(row: Row) -> str:
    return f"{seconds(min(row.seconds))} to {seconds(max(row.seconds))}"


def _versions(record: Record) -> str:
    return ", ".join(f"{name} {version}" for name, version in record.versions.items())


def _name(record: Record) -> str:
    return str(record.bundle["name"])


def _table(headers: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    headers = list(headers)
    lines = [headers, ["---"] + ["---:"] * (len(headers) - 1), *(list(row) for row in rows)]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]
