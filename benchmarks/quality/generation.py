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

from ...errors import UserError
from ...runtime.files.replace_files import replacing
from ...runtime.media.image import load_image
from ...runtime.media.listing import MAX_ROWS, read_listing
from ...runtime.media.read_video import Video
from ...runtime.media.video_file import save_frames
from ...runtime.pipeline import ImageToVideo
from ...runtime.request.settings import GenerationSettings
from .media_set import LATENTS_SUFFIX


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
    seeds = [settings.seed + number for number in range(len(rows))]
    kept, shown = folder / "frames", folder / "videos"
    videos, seconds = [], 0.0
    try:
        kept.mkdir(parents=True, exist_ok=True)
        shown.mkdir(exist_ok=True)
        for number, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
            on_video(number, len(rows))
            made = animate(row.path, row.caption, settings=settings, seed=seed)
            seconds += made.timings.total
            name = f"{number:04d}-" + re.sub(r"[^\w-]", "_", Path(row.name).stem)
            made.save(shown / f"{name}.mp4")
            (kept / name).mkdir(exist_ok=True)
            for old in (kept / name).glob("frame-*.png"):
                old.unlink()
            save_frames(made.frames[0], kept / name / "frame.png")
            with replacing([kept / f"{name}{LATENTS_SUFFIX}"]) as (new,):
                np.save(new, made.latents[0])
            videos.append(Video(name, made.frames[0], settings.fps, row.caption, made.latents[0]))
        on_video(len(rows), len(rows))
        lines = [json.dumps({"path": video.name, "caption": video.caption}, ensure_ascii=False) for video in videos]
        (kept / "videos.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
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
        "seeds": seeds,
        "seconds": round(seconds, 2),
    }
