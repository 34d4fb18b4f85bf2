"""What builds and exports that were killed left behind: ``.NAME.partial-PID``, told by their process that is gone."""

from __future__ import annotations

import os
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path

_LEFT = re.compile(r"\.(?P<name>.+)\.(?P<kind>partial|replaced)-(?P<process>[0-9]{1,10})")


def remove_abandoned_in(bundle: Path) -> None:
    """Remove those of a bundle, within it and beside it. Call it as the only one who builds there."""
    for folder in (bundle, bundle / "engines", bundle / "variants"):
        _remove(folder, None)
    remove_abandoned_exports(bundle)


def remove_abandoned_exports(output: Path) -> None:
    """Remove those of exports to `output`, which lie beside it."""
    _remove(output.parent, output.name)


def _remove(folder: Path, name: str | None) -> None:
    """Remove those in `folder`, of everything or of one name; what cannot be removed stays."""
    with suppress(OSError):
        for path in list(folder.iterdir()):
            found = _LEFT.fullmatch(path.name)
            if found is None or (name is not None and found["name"] != name):
                continue
            # The bundle that an export was about to replace is all there is, where the new one is not in its place.
            needed = found["kind"] == "replaced" and not (folder / found["name"]).exists()
            if needed or not _is_gone(int(found["process"])):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_gone(process: int) -> bool:
    """Whether no process has the number, or this one has: it is only about to begin."""
    if process == os.getpid():
        return True
    if sys.platform == "win32":
        return _is_gone_on_windows(process)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _is_gone_on_windows(process: int) -> bool:
    """``os.kill`` with 0 would send it a Ctrl-C there."""
    import ctypes

    query_limited, still_active = 0x1000, 259
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    handle = kernel.OpenProcess(query_limited, False, process)
    if not handle:
        # One that may not be looked at is there.
        access_denied = 5
        return bool(kernel.GetLastError() != access_denied)
    code = ctypes.c_ulong()
    kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return code.value != still_active
