"""Video files that are written while their frames are made: an mp4 is encoded while the next frames decode.

Each output has a thread of its own. mp4 and PNG take frame after frame; GIF and WebP need all frames of a video (one
palette, one table) and are written as soon as it is complete. Nothing appears under its own name before everything is
written.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np

from ..files.replace_files import replacing
from ..request.settings import check_fps
from .frame_scale import scaled
from .video_file import (
    Frames,
    Mp4Writer,
    files_of,
    not_written,
    numbered,
    tell_longer_series,
    write_picture,
    write_whole,
)


class VideoStream:
    """Takes frames from :attr:`on_frames` on; made by :func:`streaming`."""

    def __init__(self, threads: Sequence[_OutputThread]) -> None:
        self._threads = threads
        self.waited = 0.0
        """Seconds that :meth:`finish` waited: what of the writing was not hidden behind the decoding."""

    def on_frames(self, video: int, first: int, frames: Frames) -> None:
        """Frames [n, height, width, 3] of a video, in order; videos may take turns. Returns at once.

        Raises:
            UserError: a file could not be written.
        """
        # The caller's buffer may be the GPU's: it is good for this call only.
        own = np.array(frames)
        for thread in self._threads:
            thread.check()
            thread.tasks.put((video, own))

    def finish(self) -> None:
        """Wait until everything is encoded.

        Raises:
            UserError: a file could not be written.
            ValueError: a video did not get all its frames.
        """
        started = time.perf_counter()
        for thread in self._threads:
            thread.tasks.put(None)
        for thread in self._threads:
            thread.join()
            thread.check()
            thread.check_complete()
        self.waited += time.perf_counter() - started

    @property
    def seconds(self) -> float:
        """Of encoding and writing, all outputs together."""
        return sum(thread.seconds for thread in self._threads)


@contextmanager
def streaming(
    outputs: Sequence[Path], videos: int, frames: int, fps: float, scale: float = 1
) -> Iterator[tuple[VideoStream, list[Path]]]:
    """Open a stream for `videos` videos of `frames` frames each; gives it and the files that there will be.

    The files are put in place when the body has ended and everything is encoded; if it fails or is interrupted, what
    was there before stays.

    Args:
        outputs: checked by ``check_output``; several videos are numbered.
        fps: frames a second.
        scale: factor of the files' width and height.

    Raises:
        UserError: a file could not be written, or the rate is not possible.
    """
    fps = check_fps(fps)
    names = [[files_of(numbered(output, video, videos), frames) for video in range(videos)] for output in outputs]
    targets = [file for output in names for video in output for file in video]
    try:
        with replacing(targets) as temporary:
            place = iter(temporary)
            threads = [
                _OutputThread(output, [[next(place) for _ in video] for video in of_output], frames, fps, scale)
                for output, of_output in zip(outputs, names, strict=True)
            ]
            for thread in threads:
                thread.start()
            stream = VideoStream(threads)
            try:
                yield stream, targets
                stream.finish()  # nothing is left to do where the body did it
            finally:
                for thread in threads:
                    thread.stop()
    except OSError as error:
        raise not_written(outputs[0], error) from error
    for output in names:
        for video in output:
            tell_longer_series(video)


class _OutputThread(threading.Thread):
    """Writes the videos of one output.

    Args:
        output: as it was asked for, for messages.
        files: per video, where to.
        frames: of each video.
        fps: frames a second.
        scale: factor of width and height.
    """

    def __init__(self, output: Path, files: list[list[Path]], frames: int, fps: float, scale: float) -> None:
        super().__init__(name=f"writing {output.name}", daemon=True)
        self.tasks: queue.SimpleQueue[tuple[int, Frames] | None] = queue.SimpleQueue()
        self.seconds = 0.0
        self._output, self._frames, self._scale = output, frames, scale
        self._videos = [_open_video(of_video, fps) for of_video in files]
        self._stopped = threading.Event()
        self._error: BaseException | None = None

    def check(self) -> None:
        """Raise what the thread met."""
        if self._error is not None:
            raise self._error

    def check_complete(self) -> None:
        """Every video has had all its frames."""
        for number, video in enumerate(self._videos):
            if video.count != self._frames:
                raise ValueError(f"video {number} got {video.count} of {self._frames} frames")

    def stop(self) -> None:
        """End the thread; where it has not finished, its files are closed as they are."""
        self._stopped.set()
        self.tasks.put(None)
        self.join()
        for video in self._videos:
            video.abandon()

    def run(self) -> None:
        while not self._stopped.is_set():
            task = self.tasks.get()
            if task is None:
                return
            started = time.perf_counter()
            try:
                self._write(*task)
            except (OSError, av.FFmpegError) as error:
                self._error = not_written(self._output, error)
                return
            except BaseException as error:  # a MemoryError, for one: raised again where it is heard
                self._error = error
                return
            finally:
                self.seconds += time.perf_counter() - started

    def _write(self, number: int, frames: Frames) -> None:
        video = self._videos[number]
        for pixels in frames:
            if self._stopped.is_set():
                return
            video.add(scaled(pixels[None], self._scale)[0])
        if video.count == self._frames:
            video.close()


class _Video:
    """One video on its way to its files."""

    def __init__(self, files: list[Path], fps: float) -> None:
        self.files, self.fps, self.count = files, fps, 0

    def add(self, pixels: Frames) -> None:
        self.count += 1

    def close(self) -> None: ...

    def abandon(self) -> None: ...


class _Mp4(_Video):
    _writer: Mp4Writer | None = None

    def add(self, pixels: Frames) -> None:
        if self._writer is None:
            self._writer = Mp4Writer(self.files[0], (pixels.shape[0], pixels.shape[1]), self.fps)
        self._writer.add(pixels)
        super().add(pixels)

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def abandon(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.abandon()


class _Pictures(_Video):
    def add(self, pixels: Frames) -> None:
        write_picture(pixels, self.files[self.count])
        super().add(pixels)


class _Whole(_Video):
    def __init__(self, files: list[Path], fps: float) -> None:
        super().__init__(files, fps)
        self._held: list[Frames] = []

    def add(self, pixels: Frames) -> None:
        self._held.append(pixels)
        super().add(pixels)

    def close(self) -> None:
        write_whole(np.stack(self._held), self.files[0], self.fps)
        self._held.clear()


def _open_video(files: list[Path], fps: float) -> _Video:
    kinds: dict[str, type[_Video]] = {".mp4": _Mp4, ".png": _Pictures}
    return kinds.get(files[0].suffix.lower(), _Whole)(files, fps)
