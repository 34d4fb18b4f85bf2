"""Installing what is missing from a folder of wheels, on a machine that can reach no package registry."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def distribution(wheel: Path) -> tuple[str, str]:
    """Name and version of a wheel, or of an installed one's ``.dist-info``, by its file name (PEP 427)."""
    name, number = wheel.name.removesuffix(".dist-info").split("-")[:2]
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
    site.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=site.parent) as fresh:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        done = subprocess.run([*command, "--target", fresh, *map(str, wheels)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-2000:])
        _merge(Path(fresh), site)
    return dict(distribution(wheel) for wheel in wheels)


def _merge(fresh: Path, site: Path) -> None:
    """Put what was installed beside what an earlier run did. pip itself would replace folders that both have part of,
    such as ``nvidia`` and ``cuda``.
    """
    names = {distribution(info)[0] for info in fresh.glob("*.dist-info")}
    for info in site.glob("*.dist-info"):
        if distribution(info)[0] in names:
            shutil.rmtree(info)
    shutil.copytree(fresh, site, symlinks=True, dirs_exist_ok=True)
