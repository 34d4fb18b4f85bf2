"""Files that are written while their frames are made: the bytes they would have had afterwards, or nothing."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest

from consisti2v_rt import UserError
from consisti2v_rt.runtime.commands import generate
from consisti2v_rt.runtime.media import video_file, video_writers
from consisti2v_rt.runtime.media.video_file import save_frames, streaming
from consisti2v_rt.runtime.pipeline import ImageToVideo


def moving(frames: int = 12, seed: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    planes = [128 + 90 * np.sin((x + 3 * t + seed * 20) / 9 + y / (7 + c)) for t in range(frames) for c in range(3)]
    return np.stack(planes).reshape(frames, 3, height, width).transpose(0, 2, 3, 1).astype(np.uint8)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", video_file.SUFFIXES)
def test_same_files_as_written_afterwards(tmp_path, suffix):
    """Two videos whose frames take turns, in chunks of several and of one."""
    videos = [moving(seed=0), moving(seed=1)]
    (tmp_path / "streamed").mkdir()
    (tmp_path / "saved").mkdir()
    with streaming([tmp_path / "streamed" / f"out{suffix}"], 2, 12, 8) as (stream, written):
        for first, count in ((0, 5), (5, 1), (6, 6)):
            for number, frames in enumerate(videos):
                stream.on_frames(number, first, frames[first : first + count])
        stream.finish()
    saved = []
    for number, frames in enumerate(videos):
        saved += save_frames(frames, tmp_path / "saved" / f"out-{number}{suffix}", 8)
    assert [file.name for file in written] == [file.name for file in saved]
    assert names(tmp_path / "streamed") == sorted(file.name for file in saved)
    for streamed, whole in zip(written, saved, strict=True):
        assert streamed.read_bytes() == whole.read_bytes()


def test_frames_are_encoded_while_others_are_made(tmp_path):
    """The encoder is at work before the last frame is there, and the caller's buffer is free at once."""
    encoded = threading.Event()
    real = video_writers.Mp4Writer.add

    def add(self, pixels):
        real(self, pixels)
        encoded.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_writers.Mp4Writer, "add", add)
        frames = moving()
        buffer = np.empty_like(frames[:1])
        with streaming([tmp_path / "out.mp4"], 1, 12, 8) as (stream, _):
            for number in range(12):
                buffer[...] = frames[number]
                stream.on_frames(0, number, buffer)
                if number == 5:
                    assert encoded.wait(30), "nothing is encoded before the end"
                buffer[...] = 0
            stream.finish()
    assert stream.seconds > 0 and stream.waited >= 0
    (whole,) = save_frames(frames, tmp_path / "whole.mp4", 8)
    assert (tmp_path / "out.mp4").read_bytes() == whole.read_bytes()


def test_what_is_hidden_is_the_time_nobody_waited(tmp_path, monkeypatch):
    real = video_writers.PictureWriter.add

    def slow(self, pixels):
        time.sleep(0.05)
        real(self, pixels)

    monkeypatch.setattr(video_writers.PictureWriter, "add", slow)
    with streaming([tmp_path / "out.png"], 1, 4, 8) as (stream, _):
        for number, pixels in enumerate(moving(4)):
            stream.on_frames(0, number, pixels[None])
            time.sleep(0.08)
        stream.finish()
    assert stream.seconds >= 0.2 and stream.waited < 0.1


def test_a_body_that_does_not_wait_still_gets_whole_files(tmp_path):
    with streaming([tmp_path / "out.mp4"], 1, 12, 8) as (stream, _):
        stream.on_frames(0, 0, moving())
    (whole,) = save_frames(moving(), tmp_path / "whole.mp4", 8)
    assert (tmp_path / "out.mp4").read_bytes() == whole.read_bytes()


def test_a_video_without_all_its_frames_is_no_file(tmp_path):
    with (
        pytest.raises(ValueError, match="video 1 got 11 of 12 frames"),
        streaming([tmp_path / "out.mp4"], 2, 12, 8) as (stream, _),
    ):
        stream.on_frames(0, 0, moving())
        stream.on_frames(1, 0, moving(11))
        stream.finish()
    assert names(tmp_path) == []


class Stop(KeyboardInterrupt):
    """Told apart from a real Ctrl-C."""


@pytest.mark.parametrize("suffix", video_file.SUFFIXES)
@pytest.mark.parametrize("given", [0, 5, 12])
def test_an_interrupt_leaves_what_was_there(tmp_path, suffix, given):
    """Before any frame, among them, and after the last one; two outputs, one of them an old file."""
    old, new = tmp_path / "old.mp4", tmp_path / f"new{suffix}"
    old.write_bytes(b"old")
    with pytest.raises(Stop), streaming([old, new], 1, 12, 8) as (stream, _):
        for number in range(given):
            stream.on_frames(0, number, moving()[number : number + 1])
        raise Stop
    assert names(tmp_path) == ["old.mp4"] and old.read_bytes() == b"old"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("writing ")]


def test_a_full_disk_stops_the_generation_in_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(video_writers.PictureWriter, "add", full)
    frames = moving()
    with (
        pytest.raises(UserError, match=r'out\.png" could not be written \(No space left on device\)'),
        streaming([tmp_path / "out.png"], 1, 12, 8) as (stream, _),
    ):
        for number in range(12):
            stream.on_frames(0, number, frames[number : number + 1])
        stream.finish()
    assert names(tmp_path) == []


def test_a_failing_encoder_is_told(tmp_path, monkeypatch):
    def broken(self, pixels):
        raise av.FFmpegError(1, "broken pipe")

    monkeypatch.setattr(video_writers.Mp4Writer, "add", broken)
    with (
        pytest.raises(UserError, match="could not be written"),
        streaming([tmp_path / "out.mp4"], 1, 2, 8) as (stream, _),
    ):
        stream.on_frames(0, 0, moving(2))
        stream.finish()
    assert names(tmp_path) == []


# -- the command -----------------------------------------------------------------------------------------------------


def options(bundle: Path, photo: Path, *more: object) -> list[object]:
    return ["generate", "--bundle", bundle, "--image", photo, "--steps", "1", "--seed", "1", "--no-verify", *more]


@pytest.mark.slow
def test_the_command_writes_what_the_library_saves(consisti2v, tmp_path, demo_bundle, photo):
    outcome = consisti2v(*options(demo_bundle, photo, "--output", tmp_path / "a.mp4", "--clips", "2", "-p", "zoom in"))
    assert outcome.code == 0, outcome.stderr
    animate = ImageToVideo.from_bundle(demo_bundle, verify=False)
    animate(photo, "zoom in", num_inference_steps=1, seed=1, autoregress_steps=2).save(tmp_path / "b.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.slow
def test_the_command_streams(consisti2v, tmp_path, demo_bundle, photo, monkeypatch):
    """Frames reach the file's thread before the generation returns."""
    seen: list[tuple[int, bool]] = []
    returned = threading.Event()
    real_frames, real_call = video_file.VideoStream.on_frames, ImageToVideo.__call__

    def on_frames(self, video, first, frames):
        seen.append((first, returned.is_set()))
        real_frames(self, video, first, frames)

    def call(self, *arguments, **more):
        try:
            return real_call(self, *arguments, **more)
        finally:
            returned.set()

    monkeypatch.setattr(video_file.VideoStream, "on_frames", on_frames)
    monkeypatch.setattr(ImageToVideo, "__call__", call)
    assert consisti2v(*options(demo_bundle, photo, "--output", tmp_path / "a.png")).code == 0
    assert [first for first, _ in seen] == list(range(16)) and not any(late for _, late in seen)


@pytest.mark.slow
def test_the_command_leaves_nothing_when_it_is_stopped(consisti2v, tmp_path, demo_bundle, photo, monkeypatch):
    real = video_file.VideoStream.on_frames

    def stop_at_the_ninth(self, video, first, frames):
        if first == 8:
            raise KeyboardInterrupt
        real(self, video, first, frames)

    (tmp_path / "out.mp4").write_bytes(b"old")
    monkeypatch.setattr(video_file.VideoStream, "on_frames", stop_at_the_ninth)
    outcome = consisti2v(*options(demo_bundle, photo, "--output", tmp_path / "out.mp4"))
    assert outcome.code == 130 and "Traceback" not in outcome.stderr
    assert names(tmp_path) == ["out.mp4"] and (tmp_path / "out.mp4").read_bytes() == b"old"


def test_the_last_line_says_what_was_overlapped():
    class Stream:
        seconds, waited = 0.6, 0.1

    assert generate._encoding(Stream()) == "; encoding 0.6 s, 0.5 s of it overlapped with decoding"
    Stream.waited = 0.01
    assert generate._encoding(Stream()) == "; encoding 0.6 s, overlapped with decoding"
    Stream.waited = 0.59
    assert generate._encoding(Stream()) == ""
