"""``bundle.json`` of a bundle that gains or loses parts after its export: replaced in one step."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..runtime.errors import UserError
from ..runtime.guarded_read import MANIFEST, read_text
from ..runtime.manifest import MANIFEST_NAME, Manifest
from .bundle_lock import MANIFEST_LOCK, locked_for_writing


def rewrite_manifest(bundle: Path, change: Callable[[Manifest], Manifest]) -> Manifest:
    """Read the manifest as it is now, change it, check it, and put it in place at once; nobody else does meanwhile.

    Raises:
        UserError: it cannot be read or written; the old one stays.
    """
    with locked_for_writing(bundle / MANIFEST_LOCK):
        return _rewrite(bundle / MANIFEST_NAME, change)


def restore_manifest(bundle: Path, saved: Path, since: Manifest, change: Callable[[Manifest], Manifest]) -> None:
    """Undo a change. Where nobody has changed anything after it, the saved file takes its place again, which needs no
    space on a full disk.

    Args:
        saved: a copy of the file as it was, on the same file system.
        since: what it was changed to.
        change: undoes it in a manifest that is another one by now.

    Raises:
        UserError: it cannot be read or written.
    """
    path = bundle / MANIFEST_NAME
    with locked_for_writing(bundle / MANIFEST_LOCK):
        if read_text(path, MANIFEST) == since.to_json():
            saved.replace(path)
        else:
            _rewrite(path, change)


def _rewrite(path: Path, change: Callable[[Manifest], Manifest]) -> Manifest:
    temporary = path.with_name(f".{MANIFEST_NAME}.partial-{os.getpid()}")
    try:
        manifest = change(Manifest.from_json(read_text(path, MANIFEST)))
        text = manifest.to_json()
        Manifest.from_json(text)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): check space and permissions.") from None
    finally:
        temporary.unlink(missing_ok=True)
    return manifest
