"""The high-water mark of this process's resident memory."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def own_peak_bytes() -> int:
    """Bytes. On Linux ``VmHWM``: what ``getrusage`` says there includes the parent's memory at the fork."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        return int(found[1]) * 1024 if found else 0
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    # In bytes on macOS, in KiB elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
