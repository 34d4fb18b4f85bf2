"""What a record says of the bundle it measured."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.manifest import MANIFEST_NAME


def open_bundle(path: Path) -> Bundle:
    """Open a bundle; the child processes that load it verify it."""
    return Bundle.open(path, verify=False)


def manifest_sha256(bundle: Bundle) -> str | None:
    """The manifest's hash stands for the bundle: it holds the hash of every file."""
    return file_sha256(bundle.file(MANIFEST_NAME))


def file_sha256(path: Path) -> str | None:
    """None where it is not a file that can be read: what needs it says so itself."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    except OSError:
        return None


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """Name, hash, sizes."""
    manifest = bundle.manifest
    model = manifest.model
    return {
        "name": manifest.name,
        "sha256": manifest_sha256(bundle),
        "bytes": sum(record.bytes for record in manifest.files.values()),
        "trained": model.trained,
        "source": manifest.provenance.source,
        "frames": model.frames,
        "height": model.height,
        "width": model.width,
        "rows": model.rows,
        "guidance": model.guidance,
    }


def now() -> str:
    """UTC, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
