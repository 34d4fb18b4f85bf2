"""What a measurement leaves: one JSON file that says what ran, where, and every raw sample."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from ...errors import UserError
from ...runtime.commands.console import plain
from ...runtime.files.guarded_read import RECORD, parse_json, read_text
from ...runtime.files.replace_files import replacing

SCHEMA_VERSION = 1
KINDS = ("latency", "side_by_side", "scaling")
RESULTS = Path("benchmarks/results")
_LARGEST = 1e15


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
class Target:
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
    metadata: dict[str, Any] = field(default_factory=dict)

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
    targets: list[Target]
    runtime_bytes: dict[str, int] = field(default_factory=dict)
    """Installed size of the runtime, by distribution."""
    schema_version: int = SCHEMA_VERSION

    @property
    def able(self) -> list[Target]:
        """The targets that could run."""
        return [target for target in self.targets if target.unavailable is None]

    def to_json(self) -> str:
        data = asdict(self)
        for row in (row for target in data["targets"] for row in target["rows"]):
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
            if "subjects" in data:  # versions before 0.2
                data["targets"] = [
                    {"metadata" if name == "facts" else name: value for name, value in target.items()}
                    for target in data.pop("subjects")
                ]
            for row in (row for target in data["targets"] for row in target["rows"]):
                for made in ("median", "min", "max"):
                    row.pop(made, None)
            record: Record = _typed(cls, data, "record")
            record._check()
            return record
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{name} is not a record of 'consisti2v bench' ({error}): measure again.") from None

    def _check(self) -> None:
        """What those that show a record rely on.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: an entry is missing or of another kind.
        """
        for part, key, kind in _NEEDED:
            _typed(kind, getattr(self, part)[key], f"{part}.{key}")
        for gpu in self.machine["gpus"]:
            _typed(str, gpu["name"], "gpu")
        if self.kind == "latency":
            _typed(float, self.bundle["frames"], "bundle.frames")
        for target in self.targets:
            _typed(dict[str, str], target.metadata.get("failed", {}), "failed")
            if min((row.runs for row in target.rows), default=1) < 1:
                raise ValueError(f"runs of {target.name!r}")

    def save(self, path: Path) -> None:
        """Write the record, whole or not at all."""
        write_text(path, self.to_json())


_NEEDED: tuple[tuple[str, str, Any], ...] = (
    ("settings", "rounds", float),
    ("machine", "usable_cores", float),
    ("machine", "memory_bytes", float),
    ("machine", "gpus", list[Any]),
    ("bundle", "name", str),
)


def _typed(kind: Any, value: Any, name: str) -> Any:
    """`value` of JSON as a type: dataclasses by their fields, tuples and lists by their items, numbers in range.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is something else.
    """
    origin, items = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{key: _typed(hints[key], entry, key) for key, entry in value.items()})  # type: ignore[operator]
    if type(None) in items:
        return None if value is None else _typed(items[0], value, name)
    if origin in (list, tuple) and isinstance(value, list):
        return origin(_typed(items[0], entry, name) for entry in value)
    if origin is dict:
        return {key: _typed(items[1], entry, name) for key, entry in value.items()}
    numeric = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LARGEST
    if kind is Any or (kind is str and isinstance(value, str)) or (kind is float and numeric):
        return value
    if kind is int and numeric and isinstance(value, int):
        return value
    raise ValueError(f"entry {name}")


def _printable(data: Any) -> Any:
    """Names of bundles and rows may hold terminal escapes: none comes further than here."""
    if isinstance(data, str):
        return plain(data)
    if isinstance(data, dict):
        return {plain(key): _printable(value) for key, value in data.items()}
    return [_printable(value) for value in data] if isinstance(data, list) else data


def read_record(path: Path) -> Record:
    """Read a JSON file.

    Raises:
        UserError: no such file, or no record.
    """
    return Record.from_json(read_text(path, RECORD), str(path))


def place_of(record: Record | None, output: Path | None) -> Path:
    """Where a record goes: as asked for, or as ``<bundle>_<kind>_<device>.json`` in the folder of results.

    ``demo_cpu.json`` for the latency of a bundle called demo or demo_bundle; other kinds have their name in it.
    """
    if output is not None:
        return output
    folder = RESULTS if RESULTS.is_dir() else Path()
    if record is None:
        return folder / "record.json"
    # A bundle may be called anything.
    name = re.sub(r"[^\w.-]+", "_", record.bundle["name"]).strip("._").removesuffix("_bundle") or "bundle"
    device = "gpu" if any(target.device == "cuda" for target in record.able) else "cpu"
    return folder / ("_".join([name, *([] if record.kind == "latency" else [record.kind]), device]) + ".json")


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
