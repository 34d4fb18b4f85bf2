"""One build into a bundle at a time, and one change of its manifest."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..runtime.errors import UserError
from ..runtime.file_lock import locked
from ..runtime.manifest import MANIFEST_NAME
from .partial_folders import remove_abandoned_in

BUILD_LOCK = ".build.lock"
MANIFEST_LOCK = f".{MANIFEST_NAME}.lock"

_mine = threading.local()


@contextmanager
def building(bundle: Path, on_notice: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Hold a bundle for a build, waiting for the one that runs; within a build it is held already.

    At the start, what builds that were killed left behind is removed.

    Args:
        bundle: its folder.
        on_notice: told who is waited for.

    Raises:
        UserError: the lock cannot be made.
    """
    root = bundle.resolve()
    held: set[Path] = _mine.__dict__.setdefault("bundles", set())
    if root in held:
        yield
        return

    def waiting(holder: str) -> None:
        on_notice(f"waiting for {holder}, which is building into {bundle}; Ctrl-C leaves it alone")

    with locked_for_writing(root / BUILD_LOCK, waiting):
        held.add(root)
        try:
            remove_abandoned_in(root)
            yield
        finally:
            held.discard(root)


@contextmanager
def locked_for_writing(path: Path, on_wait: Callable[[str], None] = lambda holder: None) -> Iterator[None]:
    """A lock file within a bundle. A bundle that cannot be written to needs none: nobody changes it, and what this one
    would write is refused where it is written.

    Raises:
        UserError: the folder can be written to, and the lock cannot be had.
    """
    with ExitStack() as lock:
        try:
            lock.enter_context(locked(path, on_wait))
        except OSError as error:
            if os.access(path.parent, os.W_OK):
                raise UserError(
                    f"{path} cannot be locked ({error.strerror}): check its permissions, or copy the bundle to a file "
                    "system with locks."
                ) from None
        yield
