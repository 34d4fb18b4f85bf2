"""The server's log: one line an event on the error stream, as text or JSON, without control characters."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

from ..runtime.commands.console import plain

FORMATS = ("lines", "json")


class Log:
    """Writes events with their fields; `form` is one of :data:`FORMATS`."""

    def __init__(self, form: str = "lines") -> None:
        self._form = form

    def info(self, event: str, **fields: Any) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._write("error", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        known = {name: _short(value) for name, value in fields.items() if value is not None}
        if self._form == "json":
            line = json.dumps({"time": now, "level": level, "event": event} | known)
        else:
            pairs = (f"{name}={json.dumps(v) if isinstance(v, str) and ' ' in v else v}" for name, v in known.items())
            line = " ".join([now, level, event, *pairs])
        # A terminal that is gone, or a full disk behind the stream, must not end the server.
        with suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    return plain(value)[:500] if isinstance(value, str) else value
