"""What activations are recorded on: photos, or the first frames of clips, with their captions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...locations import ASSETS
from ...runtime.bundle.bundle import hash_files
from ...runtime.bundle.manifest import CalibrationSpec
from ...runtime.media.image import load_image
from ...runtime.media.listing import MAX_ROWS, read_listing
from ...runtime.media.read_video import PICTURE_SUFFIXES, VIDEO_SUFFIXES, read_video

STEPS = 8
"""Denoising steps of each sample, spread over all timesteps as in any short run."""
FEWEST_SAMPLES = 4
"""Fewer say too little about how large an activation can be."""
DEMO = "demo"
_EXAMPLE = ASSETS / "example.jpg"
_DEMO_CAPTIONS = (
    *("zoom in", "zoom out", "pan left", "pan right"),
    *("a cat turns its head in the sun", "time lapse of clouds over a mountain lake, high quality, 4k"),
)


@dataclass(frozen=True)
class CalibrationSet:
    """Photos and captions, and what they are known by."""

    name: str
    samples: tuple[tuple[Path, str], ...]
    """File of a photo or a clip, caption."""
    sha256: str
    """Of every file and caption, in order."""

    @property
    def spec(self) -> CalibrationSpec:
        """What the manifest says of a calibration on this set."""
        return CalibrationSpec(self.name, self.sha256, len(self.samples), STEPS)

    def pictures(self) -> Iterator[tuple[Any, str]]:
        """Photo and caption, one after the other; of a clip the first frame."""
        for path, caption in self.samples:
            yield _picture(path), caption


def calibration_set(source: str, max_rows: int = MAX_ROWS) -> CalibrationSet:
    """The set that ``--calibrate`` names.

    Args:
        source: a .csv or .jsonl listing of photos or clips with captions (see ``runtime/media/listing.py``), or
            "demo": the example photo of the package with six captions.
        max_rows: most rows of the listing.

    Raises:
        UserError: no such listing, a bad row, a file that is neither a photo nor a clip, or fewer than
            :data:`FEWEST_SAMPLES`.
    """
    if source == DEMO:
        samples = tuple((_EXAMPLE, caption) for caption in _DEMO_CAPTIONS)
    else:
        samples = tuple((entry.path, entry.caption) for entry in read_listing(source, max_rows=max_rows))
    if len(samples) < FEWEST_SAMPLES:
        raise UserError(
            f'the listing "{source}" has {len(samples)} rows: calibration needs at least {FEWEST_SAMPLES} photos.'
        )
    digest = hashlib.sha256()
    for path, caption in samples:
        if path.suffix.lower() not in (*PICTURE_SUFFIXES, *VIDEO_SUFFIXES):
            raise UserError(f'the listing "{source}" names {path.name}, which is neither a photo nor a clip.')
        _picture(path)
        digest.update(bytes.fromhex(hash_files(path.parent, [path.name])[path.name].sha256) + caption.encode() + b"\0")
    return CalibrationSet(source if source == DEMO else Path(source).name, samples, digest.hexdigest())


def _picture(path: Path) -> Any:
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return load_image(path)
    return load_image(read_video(path, max_frames=1)[0][0])
