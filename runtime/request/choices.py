"""Names that settings choose from and that need no image library: ``doctor`` runs where Pillow is damaged."""

from __future__ import annotations

CAMERA_MOTIONS = ("pan_left", "pan_right", "zoom_in", "zoom_out")
FITS = ("crop", "pad", "stretch")
