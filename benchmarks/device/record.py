"""The record of a device run: sections that are written down as soon as each is over, so that a stop loses little."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Record:
    """One JSON file, rewritten whole after every section.

    Args:
        path: the file.
        seconds: time for the whole run; a section that would begin after it is skipped, and said to be.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._until = path, time.monotonic() + seconds
        self.sections: dict[str, Any] = {}

    @property
    def seconds_left(self) -> float:
        return self._until - time.monotonic()

    def section(self, name: str, work: Callable[[], Any]) -> Any:
        """Run a section; its result, or the error that ended it, is in the file when this returns."""
        started = time.monotonic()
        entry: dict[str, Any]
        if self.seconds_left <= 0:
            entry = {"skipped": "no time was left"}
        else:
            try:
                entry = {"result": work()}
            except Exception as error:
                # A refusal is a finding: what refused, and in which words.
                lines = traceback.format_exception(error)
                entry = {"error": f"{type(error).__name__}: {error}", "traceback": "".join(lines)[-3000:]}
        entry["seconds"] = round(time.monotonic() - started, 3)
        self.sections[name] = entry
        self._write()
        return entry.get("result")

    def _write(self) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self.sections, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self._path)
