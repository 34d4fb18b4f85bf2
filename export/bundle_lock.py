"""One build or export into a bundle at a time, and what killed ones left of their temporary files and folders.

Each of these lies under a lock, so that one name is enough: an export's, beside the bundle, under the lock of exports
to that place; a build's, within the bundle, under the lock of the bundle. Whoever has the lock knows that nobody works
there, and removes what is left; process numbers would not tell, because two containers share them.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..errors import UserError
from ..runtime.bundle.manifest import DERIVED_FOLDERS
from ..runtime.bundle.replaced_folder import export_lock, recover_replaced, replaced_folder
from ..runtime.files.file_lock import locked

BUILD_LOCK = ".build.lock"

_mine = threading.local()


@contextmanager
def building(bundle: Path, on_notice: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Hold a bundle for a build or export, waiting for the one that runs; one thread may hold it several times.

    At the start, what killed builds left behind is removed.

    Args:
        bundle: its folder.
        on_notice: told who is waited for.

    Raises:
        UserError: the lock cannot be made, or the bundle has a link to a folder outside where a build writes.
    """
    root = bundle.resolve()
    held: set[Path] = _mine.__dict__.setdefault("bundles", set())
    if root in held:
        yield
        return
    with _locked_for_writing(root / BUILD_LOCK, bundle, on_notice):
        held.add(root)
        try:
            remove_abandoned_builds(root)
            _refuse_links_outside(root)
            yield
        finally:
            held.discard(root)


@contextmanager
def exporting(output: Path, on_notice: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Hold a place for an export to it, which may not exist yet, waiting for the export that runs.

    Raises:
        UserError: the lock cannot be made.
    """
    with _locked_for_writing(export_lock(output), output, on_notice):
        yield


@contextmanager
def _locked_for_writing(path: Path, bundle: Path, on_notice: Callable[[str], None]) -> Iterator[None]:
    """A lock file, but for a folder that cannot be written to: nobody changes it, and writes to it are refused."""

    def waiting(holder: str) -> None:
        on_notice(f"waiting for {holder}, which is writing to {bundle}; Ctrl-C leaves it alone")

    with ExitStack() as lock:
        try:
            try:
                lock.enter_context(locked(path, waiting))
            except FileNotFoundError:
                # An export is replacing the folder at this moment, or was killed then.
                recover_replaced(path.parent)
                lock.enter_context(locked(path, waiting))
        except OSError as error:
            if os.access(path.parent, os.W_OK):
                raise UserError(
                    f"{path} cannot be locked ({error.strerror}): check its permissions, or copy the bundle to a file "
                    "system with locks."
                ) from None
        yield


def _refuse_links_outside(root: Path) -> None:
    """What a build writes would follow them."""
    for name in DERIVED_FOLDERS:
        for path in (root / name, *(root / name).rglob("*")):
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise UserError(
                    f"bundle folder {path.relative_to(root).as_posix()} is a link to outside {root}: replace it by "
                    "what it leads to, or remove it."
                )


def partial_path(path: Path) -> Path:
    """Where a file or folder is written before it takes its place."""
    return path.with_name(f".{path.name}.partial")


def remove_abandoned_builds(bundle: Path) -> None:
    """Remove what killed builds left in a bundle. Call it with the bundle's lock."""
    with suppress(OSError):
        for path in list(bundle.glob(".*.partial")):
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
