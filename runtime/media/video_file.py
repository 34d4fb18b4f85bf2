"""The way out: uint8 frames -> a video file, an animated image or numbered pictures, whole or not at all."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, features

from ...errors import UserError, shown
from ..files.replace_files import destination, replacing
from ..request.settings import check_fps
from .frame_scale import scaled

Frames: TypeAlias = npt.NDArray[np.uint8]

SUFFIXES = (".mp4", ".gif", ".webp", ".png")

_log = logging.getLogger(__name__)

# In order of preference. libx264 is the only one that holds a constant quality by itself.
_MP4_ENCODERS = ("libx264", "libopenh264", "mpeg4")
# With macroblock-tree rate control, x264's vector code gives the same frames other bytes now and then (2 to 10 of 150
# times, on one thread); without it the files are 2 % larger.
_X264_OPTIONS = {"crf": "17", "preset": "slow", "x264-params": "mbtree=0"}
_FALLBACK_BITS_PER_PIXEL = 1.0
_BT709 = 1
_LIMITED_RANGE = 1
_WEBP_QUALITY = 90
# Browsers slow a GIF frame shorter than this down to 100 ms.
_GIF_SHORTEST_CENTISECONDS = 2
_PALETTE_SAMPLES = 1_000_000


def check_output(path: str | os.PathLike[str]) -> Path:
    """Refuse, before any work, a path that :func:`save_frames` could not write; returns it as a :class:`Path`.

    Raises :class:`UserError` for an unknown suffix, a folder or device in the file's place, a missing or unwritable
    parent folder, and a format that the installed libraries cannot write. A symbolic link stands for its target.
    """
    target = output_path(path)
    suffix = target.suffix.lower()
    if str(target) == "-":
        raise UserError("a video cannot be written to standard output, so give a file name ending in .mp4 for example.")
    if suffix not in SUFFIXES:
        raise UserError(f'"{target}" does not end in a known suffix, so end the name in one of {", ".join(SUFFIXES)}.')
    try:
        parent = destination(target).parent
        if not parent.is_dir():
            raise UserError(f'the folder "{parent}" does not exist, so create it or choose another one.')
        if not os.access(parent, os.W_OK | os.X_OK):
            raise UserError(
                f'the folder "{parent}" cannot be written to, so change its permissions or choose another one.'
            )
    except OSError as error:
        raise UserError(f'"{target}" cannot be written ({_reason(error)}), so choose another name.') from None
    if suffix == ".mp4":
        _mp4_encoder()
    if suffix == ".webp" and not features.check("webp"):
        raise UserError("the installed Pillow cannot write WebP, so choose .mp4, .gif or .png.")
    return target


def output_path(path: str | os.PathLike[str]) -> Path:
    """The name of an output; :class:`UserError` for what is no path, such as a file object."""
    try:
        return Path(path)
    except TypeError:
        raise UserError(f"an output is a path such as out.mp4, as a str or a Path, not {shown(path)}.") from None


def numbered(path: str | os.PathLike[str], index: int, count: int) -> Path:
    """The name of video ``index`` of ``count``: out-0.mp4, out-1.mp4 ... for out.mp4; a single video keeps its name."""
    target = output_path(path)
    if count == 1:
        return target
    digits = len(str(count - 1))
    return target.with_name(f"{target.stem}-{index:0{digits}d}{target.suffix}")


def save_frames(frames: Frames, path: str | os.PathLike[str], fps: float = 8, scale: float = 1) -> list[Path]:
    """Write uint8 RGB frames [T, h, w, 3] and return the files written.

    The suffix chooses: ``.mp4`` (H.264, yuv420p, BT.709; an odd side is padded by its last row or column), ``.gif``
    (one palette for all frames, loops), ``.webp`` (animated, loops), ``.png`` (one file per frame: name-000.png,
    name-001.png ...). ``fps`` is the number of frames shown per second, at most 50 in a GIF; PNG has none. GIF and
    WebP join equal neighbouring frames into one that lasts as long. ``scale`` is a factor of width and height.

    Files are written under a temporary name in the same folder and then renamed, so a call that fails or is
    interrupted leaves what was there before, of a series of pictures each single one. Pictures of an earlier, longer
    series stay; a warning names them. Raises :class:`UserError` for what :func:`check_output` refuses, for other shapes
    or types, and if the disk is full or the folder is not writable.
    """
    target = check_output(path)
    if not (
        isinstance(frames, np.ndarray)
        and frames.dtype == np.uint8
        and frames.ndim == 4
        and frames.shape[3] == 3
        and frames.size > 0
    ):
        given = f"{frames.dtype} {list(frames.shape)}" if isinstance(frames, np.ndarray) else type(frames).__name__
        raise UserError(f"frames must be a uint8 array [frames, height, width, 3] that is not empty, not {given}.")
    fps = check_fps(fps)
    frames = scaled(frames, scale)

    targets = files_of(target, len(frames))
    try:
        with replacing(targets) as temporary:
            if target.suffix.lower() == ".png":
                for pixels, file in zip(frames, temporary, strict=True):
                    write_picture(pixels, file)
            else:
                write_whole(frames, temporary[0], fps)
    except (OSError, av.FFmpegError) as error:
        raise not_written(target, error) from error
    tell_longer_series(targets)
    return targets


def tell_longer_series(targets: list[Path]) -> None:
    """Warn of pictures that follow a series just written: a player or FFmpeg would show them as its end."""
    last = targets[-1]
    stem, _, digits = last.stem.rpartition("-")
    if last.suffix.lower() != ".png" or not stem:
        return
    stale: list[Path] = []
    while (following := last.with_name(f"{stem}-{len(targets) + len(stale):0{len(digits)}d}{last.suffix}")).exists():
        stale.append(following)
    if stale:
        _log.warning('"%s" to "%s" of an earlier, longer series are still there', stale[0], stale[-1].name)


def files_of(target: Path, frames: int) -> list[Path]:
    """The files that a video becomes: one, or for .png one per frame."""
    if target.suffix.lower() != ".png":
        return [target]
    digits = max(3, len(str(frames - 1)))
    return [target.with_name(f"{target.stem}-{i:0{digits}d}{target.suffix}") for i in range(frames)]


def write_picture(pixels: Frames, file: Path) -> None:
    """One frame [height, width, 3] as a PNG."""
    Image.fromarray(pixels).save(file, "PNG")


def write_whole(frames: Frames, file: Path, fps: float) -> None:
    """All frames of a video at once, in the format of the suffix."""
    _WRITERS[file.suffix.lower()](frames, file, fps)


def not_written(target: Path, error: Exception) -> UserError:
    """The refusal for a file that could not be written."""
    return UserError(
        f'"{target}" could not be written ({_reason(error)}), so check the free space and the permissions.'
    )


def _mp4_encoder() -> str:
    for name in _MP4_ENCODERS:
        try:
            av.Codec(name, "w")
        except ValueError:  # av.codec.codec.UnknownCodecError
            continue
        return name
    raise UserError(
        f"the installed PyAV has none of the encoders {', '.join(_MP4_ENCODERS)}, so choose .gif, .webp or .png, "
        "or reinstall the av package."
    )


class Mp4Writer:
    """An mp4 that grows frame by frame; whole once it is closed.

    Args:
        file: where to.
        size: height and width of the frames; an odd side is padded by its last row or column.
        fps: frames a second.
    """

    def __init__(self, file: Path, size: tuple[int, int], fps: float) -> None:
        encoder = _mp4_encoder()
        self._rate = Fraction(fps).limit_denominator(1001)
        # 4:2:0 halves both sides of the colour planes, so they must be even.
        self._padding = ((0, size[0] % 2), (0, size[1] % 2), (0, 0))
        height, width = (side + side % 2 for side in size)
        self._frames = 0
        # An absolute path, for FFmpeg takes what stands before a colon for a protocol.
        options = {"movflags": "+faststart"}
        self._container = av.open(str(file.absolute()), "w", format="mp4", options=options)
        self._stream = stream = self._container.add_stream(encoder, rate=self._rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = _LIMITED_RANGE
        if encoder == "libx264":
            stream.options = dict(_X264_OPTIONS)
            context.thread_count = 1
        else:
            stream.bit_rate = max(200_000, int(height * width * fps * _FALLBACK_BITS_PER_PIXEL))
            _log.warning("libx264 is missing from the installed PyAV; %s is used instead, at lower quality", encoder)

    def add(self, pixels: Frames) -> None:
        """One frame: uint8 RGB [height, width, 3]."""
        padded = np.ascontiguousarray(np.pad(pixels, self._padding, mode="edge"))
        frame = av.VideoFrame.from_ndarray(padded, format="rgb24").reformat(
            format="yuv420p",
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            dst_colorspace=Colorspace.ITU709,
        )
        frame.pts, frame.time_base = self._frames, 1 / self._rate
        self._frames += 1
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what the encoder still holds, and the index."""
        self._container.mux(self._stream.encode())
        self._container.close()

    def abandon(self) -> None:
        """Let go of the file, which is of no use then."""
        with suppress(OSError, av.FFmpegError):
            self._container.close()


def _write_mp4(frames: Frames, file: Path, fps: float) -> None:
    writer = Mp4Writer(file, (frames.shape[1], frames.shape[2]), fps)
    try:
        for pixels in frames:
            writer.add(pixels)
    except BaseException:
        writer.abandon()
        raise
    writer.close()


def _write_gif(frames: Frames, file: Path, fps: float) -> None:
    # One palette for all frames: with one palette each, still areas flicker. Octree, dithered, came out closest to the
    # source after a slight blur (48 dB; median cut 41 dB), and smallest.
    step = max(1, math.isqrt(math.ceil(frames[..., 0].size / _PALETTE_SAMPLES)))
    samples = np.concatenate(frames[:, ::step, ::step])
    palette = Image.fromarray(samples).quantize(256, method=Image.Quantize.FASTOCTREE)
    pages = [Image.fromarray(pixels).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for pixels in frames]
    durations = [10 * max(_GIF_SHORTEST_CENTISECONDS, ticks) for ticks in _ticks(len(frames), fps, 100)]
    pages[0].save(file, "GIF", save_all=True, append_images=pages[1:], duration=durations, loop=0)


def _write_webp(frames: Frames, file: Path, fps: float) -> None:
    pages = [Image.fromarray(pixels) for pixels in frames]
    pages[0].save(
        file,
        "WEBP",
        save_all=True,
        append_images=pages[1:],
        duration=_ticks(len(frames), fps, 1000),
        loop=0,
        quality=_WEBP_QUALITY,
        method=4,
    )


def _ticks(count: int, fps: float, ticks_per_second: int) -> list[int]:
    """Whole-tick durations whose running sum stays within half a tick of the exact time of each frame's end."""
    ends = [round(index * ticks_per_second / fps) for index in range(count + 1)]
    return [end - start for start, end in pairwise(ends)]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__


_WRITERS: dict[str, Callable[[Frames, Path, float], None]] = {
    ".mp4": _write_mp4,
    ".gif": _write_gif,
    ".webp": _write_webp,
}
