"""The record of a device run: parts that are written down as soon as each is over, so that a stop loses little."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...runtime.files.guarded_read import RECORD, read_json
from ...runtime.files.replace_files import replacing

RAN, REFUSED, FAILED, SKIPPED = "ran", "refused", "failed", "skipped"
"""What became of a part: it gave a result; it said in one sentence why it cannot be had here; it broke; it was not
begun."""


class Record:
    """One JSON file, rewritten whole after every part.

    Args:
        path: the file.
        seconds: time for the whole run; a part that would begin after it is skipped, and said to be.
        resume: parts that an earlier run has in this file keep their results; those it skipped are made now.

    Raises:
        UserError: a file to resume that is no such record.
    """

    def __init__(self, path: Path, seconds: float, *, resume: bool = False) -> None:
        self._path, self._until = path, time.monotonic() + seconds
        self.parts: dict[str, dict[str, Any]] = {}
        if resume and path.exists():
            self.parts = _read(path)

    @property
    def seconds_left(self) -> float:
        return self._until - time.monotonic()

    def part(self, name: str, work: Callable[[], Any], *, again: bool = False) -> None:
        """Run a part; its result, or the words that ended it, is in the file when this returns.

        Args:
            work: its result is what JSON can hold. A UserError is a refusal, and a finding: what refused, in which
                words.
            again: also where an earlier run has its result.
        """
        if self.parts.get(name, {}).get("status") in (RAN, REFUSED) and not again:
            return
        started = time.monotonic()
        if self.seconds_left <= 0:
            entry: dict[str, Any] = {"status": SKIPPED, "reason": "no time was left"}
        else:
            try:
                entry = {"status": RAN, "result": work()}
            except UserError as refusal:
                entry = {"status": REFUSED, "reason": str(refusal)}
            except subprocess.TimeoutExpired as late:
                entry = {"status": FAILED, "reason": f"stopped after {late.timeout:.0f} s"}
            except Exception as error:
                entry = {"status": FAILED, "reason": f"{type(error).__name__}: {error}"}
        entry["seconds"] = round(time.monotonic() - started, 3)
        self.parts[name] = entry
        with replacing([self._path]) as (new,):
            new.write_text(json.dumps(self.parts, indent=1) + "\n", encoding="utf-8")

    def without_result(self) -> dict[str, str]:
        """part -> what became of it, of those that gave no result."""
        return {name: entry["status"] for name, entry in self.parts.items() if entry["status"] != RAN}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        parts = read_json(path, RECORD("give another --output"))
        if not all(entry["status"] in (RAN, REFUSED, FAILED, SKIPPED) for entry in parts.values()):
            raise ValueError("a part without status")
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no record of a device run ({error}): give another --output.") from None
    return dict(parts)
