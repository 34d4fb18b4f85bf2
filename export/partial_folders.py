"""Temporary files and folders of builds and exports: their names, and removing what killed ones left.

Each lies under a lock, so that one name is enough: an export's, beside the bundle, under the lock of exports to that
place; a build's, within the bundle, under the lock of the bundle. Whoever has the lock knows that nobody works there,
and removes what is left; process numbers would not tell, because two containers share them.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from ..runtime.bundle.replaced_folder import replaced_folder

DERIVED_FOLDERS = ("engines", "variants", "kernels")
"""What ``consisti2v build`` adds to a bundle."""


def partial_path(path: Path) -> Path:
    """Where a file or folder is written before it takes its place."""
    return path.with_name(f".{path.name}.partial")


def remove_abandoned_builds(bundle: Path) -> None:
    """Remove what killed builds left in a bundle. Call it with the bundle's lock."""
    for folder in (bundle, *(bundle / name for name in DERIVED_FOLDERS)):
        # A link may lead out of the bundle.
        if folder != bundle and folder.is_symlink():
            continue
        with suppress(OSError):
            for path in list(folder.iterdir()):
                if path.name.startswith(".") and path.name.endswith(".partial"):
                    _remove(path)


def remove_abandoned_export(output: Path) -> None:
    """Remove what a killed export to `output` left beside it. Call it with the lock of exports to `output`."""
    partial = partial_path(output)
    _remove(partial)
    # While the output is missing, the old bundle is the only one.
    if os.path.lexists(output):
        # Out of the name that is given back first: a kill halfway would leave half a bundle for the day on which the
        # new one is deleted.
        with suppress(OSError):
            replaced_folder(output).rename(partial)
        _remove(partial)


def _remove(path: Path) -> None:
    """Remove a file, a folder, or a link but not what it leads to; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
