"""What a measurement leaves: one JSON file that says what ran, where, and every raw sample."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...runtime.errors import UserError
from ...runtime.guarded_read import RECORD, parse_json, read_text
from ...runtime.video_file import replacing

SCHEMA_VERSION = 1
KINDS = ("latency", "side_by_side", "scaling")


@dataclass(frozen=True)
class Row:
    """One thing that was timed."""

    name: str
    """A stage, "video", "forward", or a point of a scaling such as "frames 16"."""
    seconds: tuple[float, ...]
    """Every measured run, in order; warm-up runs are not among them."""
    runs: int = 1
    """How often a video needs it, where `seconds` are of all of them together."""
    first: float | None = None
    """The very first run, where it was kept apart."""
    device_seconds: tuple[float, ...] = ()
    """The same runs by the device's own events, where it has them."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass
class Subject:
    """One way to do the work: a formulation or a session, in a precision, on a device."""

    name: str
    backend: str
    precision: str
    device: str
    unavailable: str | None = None
    """Why it could not run; then all that follows is empty."""
    rows: list[Row] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)
    """Seconds spent once: start, load, first_run (build, just-in-time compilation and capture included)."""
    host_peak_bytes: int | None = None
    """Largest resident memory of its process and the processes that one started."""
    device_peak_bytes: int | None = None
    energy_joules: tuple[float, ...] = ()
    """Of every measured run, by the device's own counter."""
    relative_l2: float | None = None
    """Of its output against the float32 published formulation's."""
    speed_up: float | None = None
    """Over the published formulation in torch eager, float32."""
    facts: dict[str, Any] = field(default_factory=dict)

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)


@dataclass
class Record:
    """A whole measurement."""

    kind: str
    what: str
    """One line for a reader."""
    created: str
    """UTC, to the second."""
    machine: dict[str, Any]
    versions: dict[str, str]
    bundle: dict[str, Any]
    settings: dict[str, Any]
    subjects: list[Subject]
    runtime_bytes: dict[str, int] = field(default_factory=dict)
    """Installed size of the runtime, by distribution."""
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        data = asdict(self)
        for subject in data["subjects"]:
            for row in subject["rows"]:
                values = row["seconds"]
                row |= {"median": statistics.median(values), "min": min(values), "max": max(values)} if values else {}
        return json.dumps(data, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, name: str) -> Record:
        """Read what :meth:`to_json` wrote; `name` is for the message.

        Raises:
            UserError: not such a record.
        """
        try:
            data = parse_json(text)
            if data["schema_version"] != SCHEMA_VERSION or data["kind"] not in KINDS:
                raise ValueError(f"schema version {data['schema_version']!r}, kind {data['kind']!r}")
            subjects = [_subject(entry) for entry in data.pop("subjects")]
            return cls(**data, subjects=subjects)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{name} is not a record of 'consisti2v bench' ({error}): measure again.") from None

    def save(self, path: Path) -> None:
        """Write the record, whole or not at all."""
        write_text(path, self.to_json())


def _subject(data: Mapping[str, Any]) -> Subject:
    fields = dict(data)
    rows = []
    for entry in fields.pop("rows"):
        values = {key: value for key, value in entry.items() if key not in ("median", "min", "max")}
        for key in ("seconds", "device_seconds"):
            values[key] = tuple(float(value) for value in values.get(key, ()))
            if not all(math.isfinite(value) and value >= 0 for value in values[key]):
                raise ValueError(f"{key} of {entry.get('name')!r}")
        rows.append(Row(**values))
    fields["energy_joules"] = tuple(fields.get("energy_joules", ()))
    return Subject(**fields, rows=rows)


def read_record(path: Path) -> Record:
    """Read a JSON file.

    Raises:
        UserError: no such file, or no record.
    """
    return Record.from_json(read_text(path, RECORD), str(path))


def write_text(path: Path, text: str) -> None:
    """Write a text file through a temporary sibling.

    Raises:
        UserError: the place cannot be written.
    """
    try:
        with replacing([path]) as (temporary,):
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another place.") from None


def check_writable(path: Path) -> None:
    """Refuse, before any work, a file that could not be written.

    Raises:
        UserError: its folder is missing or closed, or it is a folder itself.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file.")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{path.parent} is not a folder that can be written to: make it first, or choose another one.")
