"""``bundle.json`` of a bundle that gains or loses parts after its export: replaced in one step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import UserError
from ..runtime.bundle.manifest import MANIFEST_NAME, Manifest
from ..runtime.files.guarded_read import MANIFEST, read_text
from .bundle_lock import building
from .partial_folders import partial_path


def rewrite_manifest(bundle: Path, change: Callable[[Manifest], Manifest]) -> Manifest:
    """Read the manifest as it is now, change it, check it, and put it in place at once, with the bundle's lock.

    Raises:
        UserError: it cannot be read or written; the old one stays.
    """
    with building(bundle):
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
    with building(bundle):
        if read_text(path, MANIFEST) == since.to_json():
            saved.replace(path)
        else:
            _rewrite(path, change)


def _rewrite(path: Path, change: Callable[[Manifest], Manifest]) -> Manifest:
    temporary = partial_path(path)
    try:
        manifest = change(Manifest.from_json(read_text(path, MANIFEST)))
        text = manifest.to_json()
        Manifest.from_json(text)
        # Created, and nothing that is there is followed or overwritten: it was removed with the lock.
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): check space and permissions.") from None
    finally:
        temporary.unlink(missing_ok=True)
    return manifest
