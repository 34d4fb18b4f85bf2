"""Where a record goes, and how it is shown."""

from __future__ import annotations

import re
from pathlib import Path

from ...runtime.commands.console import echo, make_console, plain
from .record import Record, check_writable
from .tables import show

RESULTS = Path("benchmarks/results")


def check_place(output: Path | None) -> None:
    """Refuse, before anything is measured, a place that the record could not be written to.

    Raises:
        UserError: it could not.
    """
    check_writable(output if output is not None else _folder() / "record.json")


def deliver(record: Record, output: Path | None, *, as_json: bool) -> None:
    """Write the record, as asked for or as ``<bundle>_<kind>_<device>.json`` in the folder of results; then show it."""
    path = output if output is not None else _folder() / default_name(record)
    record.save(path)
    if as_json:
        echo(record.to_json(), nl=False)
        return
    # Cells are escaped where they hold names; emoji codes are no part of any.
    show(record, make_console(markup=True))
    echo(plain(path))


def default_name(record: Record) -> str:
    """``demo_cpu.json`` for the latency of a bundle called demo or demo_bundle; other kinds have their name in it."""
    # A bundle may be called anything.
    name = re.sub(r"[^\w.-]+", "_", record.bundle["name"]).strip("._").removesuffix("_bundle") or "bundle"
    measured = {subject.device for subject in record.subjects if subject.unavailable is None}
    words = [name, "" if record.kind == "latency" else record.kind, "gpu" if "cuda" in measured else "cpu"]
    return "_".join(word for word in words if word) + ".json"


def _folder() -> Path:
    return RESULTS if RESULTS.is_dir() else Path()
