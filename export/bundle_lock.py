"""One build or export into a bundle at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import UserError
from ..runtime.bundle.replaced_folder import export_lock, recover_replaced
from ..runtime.files.file_lock import locked
from .partial_folders import DERIVED_FOLDERS, remove_abandoned_builds

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
    """A lock file. A folder that cannot be written to needs none: nobody changes it, and what this process would write
    is refused where it is written.

    Raises:
        UserError: the folder can be written to, and the lock cannot be had.
    """

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
