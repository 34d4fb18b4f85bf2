"""uint8 RGB frames -> an mp4, an animated image or numbered pictures, a frame at a time."""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray
from PIL import Image

from ...errors import UserError

Frames: TypeAlias = NDArray[np.uint8]

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


class VideoWriter:
    """One video on its way to its files, which are whole once it is closed."""

    def __init__(self, files: list[Path], fps: float) -> None:
        self.files, self.fps, self.count = files, fps, 0

    def add(self, pixels: Frames) -> None:
        """The next frame, uint8 RGB [height, width, 3]."""
        self._add(pixels)
        self.count += 1

    def _add(self, pixels: Frames) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Write what is still held."""

    def abandon(self) -> None:
        """Let go of the files, which are of no use then."""


def open_writer(files: list[Path], fps: float) -> VideoWriter:
    """The writer for these files' suffix: .png takes a file per frame, the others one for all."""
    kinds: dict[str, type[VideoWriter]] = {".mp4": Mp4Writer, ".png": PictureWriter}
    return kinds.get(files[0].suffix.lower(), _AnimationWriter)(files, fps)


def mp4_encoder() -> str:
    """The best encoder that the installed PyAV has; :class:`UserError` where it has none."""
    for name in _MP4_ENCODERS:
        with suppress(ValueError):  # av.codec.codec.UnknownCodecError
            av.Codec(name, "w")
            return name
    raise UserError(
        f"the installed PyAV has none of the encoders {', '.join(_MP4_ENCODERS)}, so choose .gif, .webp or .png, "
        "or reinstall the av package."
    )


class Mp4Writer(VideoWriter):
    """H.264, yuv420p, BT.709; an odd side is padded by its last row or column."""

    _container: Any = None

    def _add(self, pixels: Frames) -> None:
        if self._container is None:
            self._open(*pixels.shape[:2])
        # 4:2:0 halves both sides of the colour planes, so they must be even.
        padding = ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0))
        padded = np.ascontiguousarray(np.pad(pixels, padding, mode="edge"))
        frame = av.VideoFrame.from_ndarray(padded, format="rgb24").reformat(
            format="yuv420p",
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            dst_colorspace=Colorspace.ITU709,
        )
        frame.pts, frame.time_base = self.count, 1 / self._rate
        self._container.mux(self._stream.encode(frame))

    def _open(self, height: int, width: int) -> None:
        encoder, self._rate = mp4_encoder(), Fraction(self.fps).limit_denominator(1001)
        # An absolute path, for FFmpeg takes what stands before a colon for a protocol.
        file, options = str(self.files[0].absolute()), {"movflags": "+faststart"}
        self._container = av.open(file, "w", format="mp4", options=options)
        self._stream = stream = self._container.add_stream(encoder, rate=self._rate)
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = _LIMITED_RANGE
        if encoder == "libx264":
            stream.options = dict(_X264_OPTIONS)
            context.thread_count = 1
        else:
            stream.bit_rate = max(200_000, int(stream.height * stream.width * self.fps * _FALLBACK_BITS_PER_PIXEL))
            _log.warning("libx264 is missing from the installed PyAV; %s is used instead, at lower quality", encoder)

    def close(self) -> None:
        container, self._container = self._container, None
        try:
            container.mux(self._stream.encode())
        finally:
            container.close()

    def abandon(self) -> None:
        if self._container is not None:
            with suppress(OSError, av.FFmpegError):
                self._container.close()


class PictureWriter(VideoWriter):
    """A PNG per frame."""

    def _add(self, pixels: Frames) -> None:
        Image.fromarray(pixels).save(self.files[self.count], "PNG")


class _AnimationWriter(VideoWriter):
    """GIF and WebP, which need all frames of a video: one palette, one table."""

    def __init__(self, files: list[Path], fps: float) -> None:
        super().__init__(files, fps)
        self._held: list[Frames] = []

    def _add(self, pixels: Frames) -> None:
        self._held.append(pixels)

    def close(self) -> None:
        frames, self._held = np.stack(self._held), []
        pages, options = [Image.fromarray(pixels) for pixels in frames], dict[str, Any]()
        if self.files[0].suffix.lower() == ".gif":
            # One palette for all frames: with one palette each, still areas flicker. Octree, dithered, came out closest
            # to the source after a slight blur (48 dB; median cut 41 dB), and smallest.
            step = max(1, math.isqrt(math.ceil(frames[..., 0].size / _PALETTE_SAMPLES)))
            samples = Image.fromarray(np.concatenate(frames[:, ::step, ::step]))
            palette = samples.quantize(256, method=Image.Quantize.FASTOCTREE)
            pages = [page.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for page in pages]
            ticks = _ticks(len(pages), self.fps, 100)
            kind, durations = "GIF", [10 * max(_GIF_SHORTEST_CENTISECONDS, length) for length in ticks]
        else:
            kind, durations = "WEBP", _ticks(len(pages), self.fps, 1000)
            options = {"quality": _WEBP_QUALITY, "method": 4}
        more = {"save_all": True, "append_images": pages[1:], "duration": durations, "loop": 0, **options}
        pages[0].save(self.files[0], kind, **more)


def _ticks(count: int, fps: float, ticks_per_second: int) -> list[int]:
    """Whole-tick durations whose running sum stays within half a tick of the exact time of each frame's end."""
    ends = [round(index * ticks_per_second / fps) for index in range(count + 1)]
    return [end - start for start, end in pairwise(ends)]
