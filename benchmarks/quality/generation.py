"""Videos to judge, made by a bundle from a listing of photos and prompts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ...runtime.media.image import load_image
from ...runtime.media.listing import MAX_ROWS, read_listing
from ...runtime.media.read_video import Frames, Video
from ...runtime.media.video_file import save_frames
from ...runtime.pipeline import ImageToVideo
from ...runtime.request.settings import GenerationSettings
from .media_set import LATENTS_SUFFIX

VIDEOS_FOLDER = "videos"
FRAMES_FOLDER = "frames"
LISTING = "videos.jsonl"
_NOT_IN_NAMES = re.compile(r"[^\w-]")


def generate_videos(
    bundle: str | os.PathLike[str],
    listing: str | os.PathLike[str],
    folder: Path,
    options: dict[str, Any],
    on_video: Callable[[int, int], None] = lambda done, total: None,
    *,
    max_rows: int = MAX_ROWS,
) -> tuple[tuple[Video, ...], dict[str, Any]]:
    """Animate every row of a listing with the same settings and write what was made.

    ``videos/`` gets an mp4 of each, for the eye. ``frames/`` gets its frames as PNG, its latents and a listing: what a
    later run is compared with, without the losses of a video codec.

    Args:
        bundle: folder made by ``consisti2v export``.
        listing: rows of photo and prompt, see :func:`read_listing`.
        folder: where all goes; made if absent, files of the same names replaced.
        options: fields of :class:`GenerationSettings`. Row n has the seed `seed` + n; without a seed, n.
        on_video: progress.
        max_rows: most rows of the listing.

    Returns:
        The videos as generated, and how they were made.

    Raises:
        UserError: a bad bundle, listing or option.
    """
    rows = read_listing(listing, max_rows=max_rows)
    settings = GenerationSettings.from_options({"seed": 0, **options})
    if settings.num_videos_per_prompt != 1 or not isinstance(settings.seed, int):
        raise UserError("one video and one whole-number seed a row: list a photo again to have it animated twice.")
    animate = ImageToVideo.from_bundle(bundle)
    for row in rows:
        load_image(row.path)
        settings = animate.check(row.path, row.caption, settings=settings).settings
    assert isinstance(settings.seed, int)
    frames_folder, videos_folder = folder / FRAMES_FOLDER, folder / VIDEOS_FOLDER
    try:
        frames_folder.mkdir(parents=True, exist_ok=True)
        videos_folder.mkdir(exist_ok=True)
        videos, seconds = [], 0.0
        for number, row in enumerate(rows):
            on_video(number, len(rows))
            generated = animate(row.path, row.caption, settings=settings, seed=settings.seed + number)
            seconds += generated.timings.total
            name = f"{number:04d}-{_NOT_IN_NAMES.sub('_', Path(row.name).stem)}"
            generated.save(videos_folder / f"{name}.mp4")
            _save_pictures(generated.frames[0], frames_folder / name)
            _save_latents(generated.latents[0], frames_folder / f"{name}{LATENTS_SUFFIX}")
            videos.append(Video(name, generated.frames[0], settings.fps, row.caption, generated.latents[0]))
        on_video(len(rows), len(rows))
        lines = [json.dumps({"path": video.name, "caption": video.caption}, ensure_ascii=False) for video in videos]
        (frames_folder / LISTING).write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f'"{folder}" cannot be written to ({error.strerror}): check space and permissions.') from None
    manifest = animate.bundle.manifest
    return tuple(videos), {
        "kind": "generated",
        "backend": "onnxruntime-cpu",
        "bundle": manifest.name,
        "source": manifest.provenance.source,
        "trained": manifest.model.trained,
        "unet_sha256": manifest.files[manifest.stages["unet"].file].sha256,
        "settings": asdict(settings),
        "seeds": [settings.seed + number for number in range(len(rows))],
        "seconds": round(seconds, 2),
    }


def _save_pictures(frames: Frames, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for old in folder.glob("frame-*.png"):
        old.unlink()
    save_frames(frames, folder / "frame.png")


def _save_latents(latents: NDArray[np.float32], target: Path) -> None:
    temporary = target.with_name(f".{target.name}.partial-{os.getpid()}.npy")
    try:
        np.save(temporary, latents)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
