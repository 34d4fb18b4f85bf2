"""What is judged, read or made by a bundle: videos with their captions, and what they are compared with."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ...runtime.files.replace_files import replacing
from ...runtime.media.image import load_image
from ...runtime.media.listing import MAX_ROWS, read_listing
from ...runtime.media.read_video import Video, find_videos, read_video
from ...runtime.media.video_file import save_frames
from ...runtime.pipeline import ImageToVideo
from ...runtime.request.settings import GenerationSettings

LATENTS_SUFFIX = ".latents.npy"
CACHE_BYTES = 2 << 30


@dataclass(frozen=True)
class MediaSet:
    """The input of every measure."""

    videos: Sequence[Video]
    reference: Sequence[Video] = ()
    """Real videos, for distances between distributions."""
    originals: dict[str, Video] = field(default_factory=dict)
    """By a video's name, the video it should equal."""


class VideoFiles(Sequence[Video]):
    """Videos read when they are asked for: a reference set of thousands need not fit in memory.

    Args:
        files: name, path and caption of each.
        max_frames: read only the first ones of each.
        cache_bytes: decoded frames kept for the next measure.
    """

    def __init__(
        self,
        files: Sequence[tuple[str, Path, str | None]],
        max_frames: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._files, self._max_frames, self._room = tuple(files), max_frames, cache_bytes
        self._kept: dict[int, Video] = {}

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        if (kept := self._kept.get(position)) is not None:
            return kept
        name, path, caption = self._files[position]
        video = Video(name, *read_video(path, self._max_frames), caption, _latents(path))
        if video.frames.nbytes <= self._room:
            self._room -= video.frames.nbytes
            self._kept[position] = video
        return video

    def with_captions(self, listing: str | os.PathLike[str], max_rows: int = MAX_ROWS) -> VideoFiles:
        """The same with the captions of a listing that names them.

        Raises:
            UserError: a video that the listing does not name.
        """
        captions = {Path(entry.name).name: entry.caption for entry in read_listing(listing, max_rows=max_rows)}
        for name, _, _ in self._files:
            if Path(name).name not in captions:
                raise UserError(f'the listing "{listing}" has no caption for {name}: add a row for it.')
        return VideoFiles([(n, path, captions[Path(n).name]) for n, path, _ in self._files], self._max_frames)


def read_videos(source: str | os.PathLike[str], max_frames: int | None = None, max_rows: int = MAX_ROWS) -> VideoFiles:
    """Videos of a folder (captions unknown), or of a listing with captions.

    Latents are taken from ``NAME.latents.npy`` beside ``NAME.mp4`` or the folder of pictures ``NAME``.

    Raises:
        UserError: nothing there; and, when it is read, a file that is no video.
    """
    path = Path(source)
    if path.is_dir():
        return VideoFiles([(file.name, file, None) for file in find_videos(path)], max_frames)
    rows = read_listing(path, max_rows=max_rows)
    return VideoFiles([(row.name, row.path, row.caption) for row in rows], max_frames)


def match_originals(videos: Sequence[Video], originals: Sequence[Video]) -> dict[str, Video]:
    """By each video's name, the original of the same name (the suffix may differ) and shape.

    Raises:
        UserError: no such original, or one of another length or size.
    """
    by_stem = {Path(original.name).stem: original for original in originals}
    matched = {}
    for video in videos:
        original = by_stem.get(Path(video.name).stem)
        if original is None:
            raise UserError(f"{video.name} has no original of that name to be compared with: add it, or leave it out.")
        if original.frames.shape != video.frames.shape:
            raise UserError(
                f"{video.name} has frames of shape {list(video.frames.shape)}, its original "
                f"{list(original.frames.shape)}: compare videos of the same length and size."
            )
        matched[video.name] = original
    return matched


def _latents(video: Path) -> NDArray[np.float32] | None:
    path = video.with_name((video.name if video.is_dir() else video.stem) + LATENTS_SUFFIX)
    if not path.is_file():
        return None
    try:
        latents = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise UserError(f'"{path}" is not a NumPy array file: generate the video again, or remove it.') from None
    return np.asarray(latents, dtype=np.float32)


def generate_videos(
    bundle: Path, listing: Path, folder: Path, options: dict[str, Any], max_rows: int, show: Callable[[int, int], None]
) -> tuple[tuple[Video, ...], dict[str, Any]]:
    """Animate every row of a listing with the same settings and write what was made.

    ``videos/`` gets an mp4 of each, for the eye. ``frames/`` gets its frames as PNG, its latents and a listing: what a
    later run is compared with, without the losses of a video codec.

    Args:
        listing: rows of photo and prompt, see :func:`read_listing`.
        folder: where all goes; made if absent, files of the same names replaced.
        options: fields of :class:`GenerationSettings`. Row n has the seed `seed` + n; without a seed, n.
        show: progress, done and in all.

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
            show(number, len(rows))
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
