"""What a measurement leaves: one JSON file that says what ran, where, and every raw sample."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...runtime.files.guarded_read import RECORD, parse_json, read_text
from ...runtime.files.replace_files import replacing

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
            data = _printable(parse_json(text))
            if data["schema_version"] != SCHEMA_VERSION or data["kind"] not in KINDS:
                raise ValueError(f"schema version {data['schema_version']!r}, kind {data['kind']!r}")
            subjects = [_subject(entry) for entry in data.pop("subjects")]
            record = cls(**data, subjects=subjects)
            record._check()
            return record
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{name} is not a record of 'consisti2v bench' ({error}): measure again.") from None

    def _check(self) -> None:
        """What those that show a record rely on.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: an entry is missing or of another kind.
        """
        for name, kind in _ENTRIES.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"entry {name}")
        _check_number("settings.rounds", self.settings["rounds"])
        for key in ("usable_cores", "memory_bytes"):
            _check_number(f"machine.{key}", self.machine[key])
        for gpu in self.machine["gpus"]:
            gpu["name"].strip()
        numbers: list[dict[str, Any]] = [self.runtime_bytes, *(subject.first for subject in self.subjects)]
        for values in numbers:
            for name, value in values.items():
                _check_number(name, value)
        if self.kind == "latency":
            _check_number("bundle.frames", self.bundle["frames"])
        self.bundle["name"].strip()
        for subject in self.subjects:
            subject.facts.get("failed", {}).items()

    def save(self, path: Path) -> None:
        """Write the record, whole or not at all."""
        write_text(path, self.to_json())


_ENTRIES = {
    "what": str,
    "created": str,
    "machine": dict,
    "versions": dict,
    "bundle": dict,
    "settings": dict,
    "runtime_bytes": dict,
}
_LARGEST = 1e15


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LARGEST:
        raise ValueError(f"entry {name}")


def _printable(data: Any) -> Any:
    """Names of bundles and rows may hold terminal escapes: none comes further than here."""
    if isinstance(data, str):
        return "".join(character if character.isprintable() else " " for character in data)
    if isinstance(data, dict):
        return {_printable(key): _printable(value) for key, value in data.items()}
    return [_printable(value) for value in data] if isinstance(data, list) else data


def _subject(data: Mapping[str, Any]) -> Subject:
    fields = dict(data)
    rows = []
    for entry in fields.pop("rows"):
        values = {key: value for key, value in entry.items() if key not in ("median", "min", "max")}
        for key in ("seconds", "device_seconds"):
            values[key] = tuple(float(value) for value in values.get(key, ()))
            for value in values[key]:
                _check_number(f"{key} of {entry.get('name')!r}", value)
        row = Row(**values)
        _check_number("runs", row.runs)
        if not isinstance(row.name, str) or row.runs < 1:
            raise ValueError(f"row {row.name!r}")
        if row.first is not None:
            _check_number("first", row.first)
        rows.append(row)
    energy = fields["energy_joules"] = tuple(fields.get("energy_joules", ()))
    subject = Subject(**fields, rows=rows)
    for value in (*energy, subject.speed_up, subject.host_peak_bytes, subject.device_peak_bytes):
        if value is not None:
            _check_number(f"of {subject.name!r}", value)
    # Of an output that is not finite it is not a number.
    if not isinstance(subject.relative_l2, float | int | None):
        raise ValueError(f"relative_l2 of {subject.name!r}")
    for text in (subject.name, subject.backend, subject.precision, subject.device, subject.unavailable or ""):
        if not isinstance(text, str):
            raise ValueError("a subject's name")
    return subject


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
