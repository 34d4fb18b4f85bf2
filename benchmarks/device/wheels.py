"""Installing what is missing from a folder of wheels, on a machine that can reach no package registry."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def distribution(wheel: Path) -> tuple[str, str]:
    """Name and version of a wheel, by its file name (PEP 427)."""
    name, number = wheel.name.split("-")[:2]
    return re.sub(r"[-_.]+", "-", name).lower(), number


def missing(folder: Path) -> list[Path]:
    """The folder's wheels whose distribution is not installed in that version."""
    return [
        wheel for wheel in sorted(folder.glob("*.whl")) if _installed(distribution(wheel)[0]) != distribution(wheel)[1]
    ]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def install(folder: Path, site: Path) -> dict[str, str]:
    """Install the missing ones into a folder of their own, which comes first on the path: what the machine has stays.

    Returns:
        Name -> version of what was installed.

    Raises:
        RuntimeError: pip could not.
    """
    wheels = missing(folder)
    if not wheels:
        return {}
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--upgrade",
        "--no-compile",
    ]
    done = subprocess.run([*command, "--target", str(site), *map(str, wheels)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-2000:])
    return dict(distribution(wheel) for wheel in wheels)
