"""Where the package's own files lie, installed or in a clone."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent
ASSETS = ROOT / "assets"
"""The demo bundle, the example photo and the example settings."""
