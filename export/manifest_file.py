"""``bundle.json`` of a bundle that gains or loses parts after its export: replaced in one step."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..runtime.errors import UserError
from ..runtime.manifest import MANIFEST_NAME, Manifest


def rewrite_manifest(bundle: Path, change: Callable[[Manifest], Manifest]) -> Manifest:
    """Read the manifest as it is now, change it, check it, and put it in place at once.

    Raises:
        UserError: it cannot be read or written; the old one stays.
    """
    path = bundle / MANIFEST_NAME
    temporary = path.with_name(f".{MANIFEST_NAME}.partial-{os.getpid()}")
    try:
        manifest = change(Manifest.from_json(path.read_text(encoding="utf-8")))
        text = manifest.to_json()
        Manifest.from_json(text)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): check space and permissions.") from None
    finally:
        temporary.unlink(missing_ok=True)
    return manifest
