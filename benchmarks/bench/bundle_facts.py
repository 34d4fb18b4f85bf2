"""What a record says of the bundle it measured."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ...runtime.bundle import Bundle
from ...runtime.manifest import MANIFEST_NAME


def open_bundle(path: Path) -> Bundle:
    """Open a bundle; the child processes that load it verify it."""
    return Bundle.open(path, verify=False)


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """Name, hash, sizes. The manifest's hash stands for the bundle: it holds the hash of every file."""
    manifest = bundle.manifest
    model = manifest.model
    return {
        "name": manifest.name,
        "sha256": hashlib.sha256(bundle.file(MANIFEST_NAME).read_bytes()).hexdigest(),
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
