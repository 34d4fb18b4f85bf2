"""Peak memory of this process."""

from __future__ import annotations

from pathlib import Path


def peak_host_bytes() -> int | None:
    """The largest resident size so far; Linux only, None elsewhere."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return None if line is None else int(line.split()[1]) * 1024
