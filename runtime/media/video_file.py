"""Video files, encoded while their frames are decoded, and put in place whole or not at all.

Each output has a thread of its own: an mp4 is encoded while the next frames decode. Nothing appears under its own name
before everything is written.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from PIL import Image, features

from ...errors import UserError, shown
from ..files.replace_files import destination, replacing
from ..request.option_table import check_fps, number
from .video_writers import Frames, mp4_encoder, open_writer

SUFFIXES = (".mp4", ".gif", ".webp", ".png")
_MIN_SCALE, _MAX_SCALE = 0.1, 16
# Below, encoders refuse; above, H.264 has no level that players know.
_MIN_SIDE, _MAX_SIDE = 16, 4096
_log = logging.getLogger(__name__)


def check_output(path: str | os.PathLike[str]) -> Path:
    """Refuse, before any work, a path that could not be written; returns it as a :class:`Path`.

    Raises:
        UserError: no path, an unknown suffix, a folder or device in the file's place, a missing or unwritable parent
            folder, or a format that the installed libraries cannot write. A symbolic link stands for its target.
    """
    try:
        target = Path(path)
    except TypeError:
        raise UserError(f"an output is a path such as out.mp4, as a str or a Path, not {shown(path)}.") from None
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
        mp4_encoder()
    if suffix == ".webp" and not features.check("webp"):
        raise UserError("the installed Pillow cannot write WebP, so choose .mp4, .gif or .png.")
    return target


def numbered(path: str | os.PathLike[str], index: int, count: int) -> Path:
    """The name of video ``index`` of ``count``: out-0.mp4, out-1.mp4 ... for out.mp4; a single video keeps its name."""
    target = Path(path)
    if count == 1:
        return target
    return target.with_name(f"{target.stem}-{index:0{len(str(count - 1))}d}{target.suffix}")


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Height and width times `scale`, in whole pixels.

    Raises:
        UserError: a factor that is not possible, or that leads to sides under 16 or over 4096 pixels.
    """
    scale = number(scale, "scale", _MIN_SCALE, _MAX_SCALE)
    if scale == 1:
        return height, width
    size = round(height * scale), round(width * scale)
    if not _MIN_SIDE <= min(size) <= max(size) <= _MAX_SIDE:
        raise UserError(
            f"scale {scale:g} would make {size[1]}x{size[0]} pixels of {width}x{height}: choose one that leads to "
            f"sides of {_MIN_SIDE} to {_MAX_SIDE} pixels."
        )
    return size


def scaled(pixels: Frames, scale: float) -> Frames:
    """A frame, uint8 [height, width, 3], with both sides times `scale`, by Lanczos' filter; 1 changes nothing."""
    height, width = scaled_size(pixels.shape[0], pixels.shape[1], scale)
    if scale == 1:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


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
    is_array = isinstance(frames, np.ndarray)
    if not is_array or frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or frames.size == 0:
        given = f"{frames.dtype} {list(frames.shape)}" if is_array else type(frames).__name__
        raise UserError(f"frames must be a uint8 array [frames, height, width, 3] that is not empty, not {given}.")
    scaled_size(frames.shape[1], frames.shape[2], scale)
    with streaming([target], 1, len(frames), fps, scale) as (stream, files):
        stream.on_frames(0, 0, frames)
    return files


class VideoStream:
    """Takes frames from :attr:`on_frames` on; made by :func:`streaming`."""

    def __init__(self, outputs: Sequence[_Output]) -> None:
        self._outputs = outputs
        self.waited = 0.0
        """Seconds that :meth:`finish` waited: what of the writing was not hidden behind the decoding."""

    def on_frames(self, video: int, first: int, frames: Frames) -> None:
        """Frames [n, height, width, 3] of a video, in order; videos may take turns. Returns at once.

        Raises:
            UserError: a file could not be written.
        """
        # The caller's buffer may be the GPU's: it is good for this call only.
        own = np.array(frames)
        for output in self._outputs:
            output.check(wait=False)
            output.submit(video, own)

    def finish(self) -> None:
        """Wait until everything is encoded.

        Raises:
            UserError: a file could not be written.
            ValueError: a video did not get all its frames.
        """
        started = time.perf_counter()
        for output in self._outputs:
            output.check(wait=True)
        self.waited += time.perf_counter() - started

    @property
    def seconds(self) -> float:
        """Of encoding and writing, all outputs together."""
        return sum(output.seconds for output in self._outputs)


@contextmanager
def streaming(
    outputs: Sequence[Path], videos: int, frames: int, fps: float, scale: float = 1
) -> Iterator[tuple[VideoStream, list[Path]]]:
    """Open a stream for `videos` videos of `frames` frames each; gives it and the files that there will be.

    The files are put in place when the body has ended and everything is encoded; if it fails or is interrupted, what
    was there before stays.

    Args:
        outputs: checked by :func:`check_output`; several videos are numbered.
        fps: frames a second.
        scale: factor of the files' width and height.

    Raises:
        UserError: a file could not be written, or the rate is not possible.
    """
    fps = check_fps(fps)
    names = [[_files_of(numbered(output, video, videos), frames) for video in range(videos)] for output in outputs]
    targets = [file for output in names for video in output for file in video]
    try:
        with replacing(targets) as temporary:
            place = iter(temporary)
            running = [
                _Output(output, [[next(place) for _ in video] for video in of_output], frames, fps, scale)
                for output, of_output in zip(outputs, names, strict=True)
            ]
            stream = VideoStream(running)
            try:
                yield stream, targets
                stream.finish()  # nothing is left to do where the body did it
            finally:
                for output in running:
                    output.stop()
    except OSError as error:
        raise _not_written(outputs[0], error) from error
    for of_output in names:
        for video in of_output:
            _tell_longer_series(video)


class _Output:
    """Writes the videos of one output, in a thread."""

    def __init__(self, name: Path, files: list[list[Path]], frames: int, fps: float, scale: float) -> None:
        self.seconds = 0.0
        self._name, self._frames, self._scale = name, frames, scale
        self._videos = [open_writer(of_video, fps) for of_video in files]
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"writing {name.name}")
        self._tasks: list[Future[None]] = []

    def submit(self, video: int, frames: Frames) -> None:
        self._tasks.append(self._pool.submit(self._write, video, frames))

    def check(self, *, wait: bool) -> None:
        """Raise what the thread met; with `wait`, at the end of all it was given."""
        try:
            while self._tasks and (wait or self._tasks[0].done()):
                self._tasks[0].result()
                del self._tasks[0]
        except (OSError, av.FFmpegError) as error:
            raise _not_written(self._name, error) from None
        for index, video in enumerate(self._videos):
            if wait and video.count != self._frames:
                raise ValueError(f"video {index} got {video.count} of {self._frames} frames")

    def stop(self) -> None:
        """End the thread; where it has not finished, its files are closed as they are."""
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)
        for video in self._videos:
            video.abandon()

    def _write(self, number: int, frames: Frames) -> None:
        video, started = self._videos[number], time.perf_counter()
        try:
            for pixels in frames:
                if self._stopped.is_set():
                    return
                video.add(scaled(pixels, self._scale))
            if video.count == self._frames:
                video.close()
        except BaseException:
            self._stopped.set()
            raise
        finally:
            self.seconds += time.perf_counter() - started


def _files_of(target: Path, frames: int) -> list[Path]:
    """The files that a video becomes: one, or for .png one per frame."""
    if target.suffix.lower() != ".png":
        return [target]
    digits = max(3, len(str(frames - 1)))
    return [target.with_name(f"{target.stem}-{i:0{digits}d}{target.suffix}") for i in range(frames)]


def _tell_longer_series(targets: list[Path]) -> None:
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


def _not_written(target: Path, error: Exception) -> UserError:
    return UserError(
        f'"{target}" could not be written ({_reason(error)}), so check the free space and the permissions.'
    )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
