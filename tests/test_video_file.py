"""Writing videos: read back and compared, refused before any work, whole or not at all."""

from __future__ import annotations

import logging
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from consisti2v_rt import UserError
from consisti2v_rt.runtime.media import video_file, video_writers
from consisti2v_rt.runtime.media.video_file import check_output, numbered, save_frames, streaming


def moving_gradient(frames: int = 16, height: int = 64, width: int = 96) -> np.ndarray:
    """Smooth colours with a bright disc that crosses the picture: every frame differs."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    disc = (y - height / 2) ** 2 + (x - 10 - (width - 20) * t / frames) ** 2 < (height / 6) ** 2
    colours = np.stack([40 + 160 * x / width, 40 + 160 * y / height, 120 + 60 * np.sin(t / 3 + x / 20)], axis=-1)
    return np.where(disc[..., None], 230.0, colours).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def block_means(frames: np.ndarray) -> np.ndarray:
    count, height, width, _ = frames.shape
    return frames.reshape(count, height // 4, 4, width // 4, 4, 3).mean(axis=(2, 4))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read_video(path: Path) -> np.ndarray:
    """Decoded planes to RGB by the formulas of BT.709 (limited range), not by the library that wrote them."""
    pictures = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            planes = frame.to_ndarray().astype(float)  # yuv420p: h rows of Y, then the quarter planes Cb and Cr
            quarter = (frame.height // 2, frame.width // 2)
            y = (planes[: frame.height] - 16) / 219
            cb, cr = (
                (plane.reshape(quarter).repeat(2, axis=0).repeat(2, axis=1) - 128) / 224
                for plane in np.split(planes[frame.height :], 2)
            )
            red, blue = y + 1.5748 * cr, y + 1.8556 * cb
            green = (y - 0.2126 * red - 0.0722 * blue) / 0.7152
            pictures.append(np.stack([red, green, blue], axis=-1))
    return np.rint(255 * np.stack(pictures)).clip(0, 255).astype(np.uint8)


def read_animation(path: Path) -> tuple[np.ndarray, list[int], int]:
    with Image.open(path) as image:
        loop = image.info["loop"]
        pages, durations = [], []
        for page in ImageSequence.Iterator(image):
            pages.append(np.asarray(page.convert("RGB")))
            durations.append(page.info["duration"])
    return np.stack(pages), durations, loop


def refusal(action, *args) -> str:
    """The message of the UserError, checked to be one plain sentence."""
    with pytest.raises(UserError) as caught:
        action(*args)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and ". " not in message and "Traceback" not in message
    return message


@pytest.mark.parametrize("fps", [8, 24, 23.976, 12.5])
def test_mp4_read_back(tmp_path, fps):
    frames = moving_gradient()
    target = tmp_path / "out.mp4"
    assert save_frames(frames, target, fps) == [target]
    assert names(tmp_path) == ["out.mp4"]
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, stream.frames) == ("h264", "yuv420p", 16)
        assert float(stream.average_rate) == pytest.approx(fps, rel=1e-4)
        assert container.duration / av.time_base == pytest.approx(16 / fps, rel=1e-3)
        assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (1, 1, 1, 1)
    assert psnr(read_video(target), frames) > 35


def test_mp4_index_comes_before_the_pictures(tmp_path):
    (target,) = save_frames(moving_gradient(), tmp_path / "out.mp4")
    data = target.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_mp4_colours_are_bt709(tmp_path):
    """Saturated patches come back as they were; the BT.601 matrix would be off by 20 levels and more."""
    colours = np.array([(200, 30, 30), (30, 200, 30), (30, 30, 200), (128, 128, 128)], np.uint8)
    frames = np.broadcast_to(colours.repeat(32, axis=0)[None, None], (4, 64, 128, 3)).copy()
    back = read_video(save_frames(frames, tmp_path / "out.mp4")[0])
    centres = back[:, 32, 16::32].astype(int)
    assert np.abs(centres - colours).max() <= 5


def test_mp4_of_odd_size_is_padded_not_cut(tmp_path):
    frames = moving_gradient(4, 63, 95)
    back = read_video(save_frames(frames, tmp_path / "out.mp4")[0])
    assert back.shape == (4, 64, 96, 3)
    assert psnr(back[:, :63, :95], frames) > 33


def test_one_frame_is_a_video_too(tmp_path):
    for suffix in video_file.SUFFIXES:
        (written,) = save_frames(moving_gradient(1), tmp_path / f"one{suffix}")
        assert written.stat().st_size > 0


def test_gif_read_back(tmp_path):
    frames = moving_gradient()
    (target,) = save_frames(frames, tmp_path / "out.gif")
    back, durations, loop = read_animation(target)
    assert len(back) == 16 and loop == 0
    # GIF counts hundredths of a second: 12 and 13 take turns so that the whole lasts 2 s.
    assert sum(durations) == 2000 and set(durations) == {120, 130}
    # 256 dithered colours are seen from a distance: compared as means of 4x4 pixels.
    assert psnr(block_means(back), block_means(frames)) > 36 and psnr(back, frames) > 24


def test_gif_does_not_run_into_the_browsers_floor(tmp_path):
    _, durations, _ = read_animation(save_frames(moving_gradient(6), tmp_path / "out.gif", 100)[0])
    assert set(durations) == {20}


def test_webp_read_back(tmp_path):
    frames = moving_gradient()
    back, durations, loop = read_animation(save_frames(frames, tmp_path / "out.webp")[0])
    assert len(back) == 16 and loop == 0 and durations == [125] * 16
    assert psnr(back, frames) > 33


def test_png_writes_one_numbered_file_per_frame(tmp_path):
    frames = moving_gradient(12)
    written = save_frames(frames, tmp_path / "out.png")
    assert [path.name for path in written] == [f"out-{index:03d}.png" for index in range(12)]
    assert sorted(tmp_path.iterdir()) == written
    for path, frame in zip(written, frames, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), frame)


def test_suffix_case_and_odd_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("UPPER.MP4", "a:b.mp4", "100%d.mp4", "caf\u00e9 \u732b.webp", "-dash.gif"):
        (written,) = save_frames(moving_gradient(3), name)
        assert written == Path(name) and written.stat().st_size > 0
    assert len(list(tmp_path.iterdir())) == 5


def test_numbered():
    assert [numbered("d/out.mp4", index, 2) for index in range(2)] == [Path("d/out-0.mp4"), Path("d/out-1.mp4")]
    assert numbered("out.mp4", 0, 1) == Path("out.mp4")
    assert numbered("out.gif", 3, 12) == Path("out-03.gif")


class Stop(KeyboardInterrupt):
    """Told apart from a real Ctrl-C."""


def interrupt_at(monkeypatch, owner, name: str, call: int) -> None:
    original, calls = getattr(owner, name), []

    def wrapper(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            raise Stop
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapper)


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp"])
def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, suffix):
    target = tmp_path / f"out{suffix}"
    target.write_bytes(b"old")
    real_save = Image.Image.save

    def half_a_save(self, file, *args, **kwargs):
        Path(file).write_bytes(b"half")
        raise Stop

    if suffix == ".mp4":
        interrupt_at(monkeypatch, video_writers.np, "ascontiguousarray", 9)
    else:
        monkeypatch.setattr(Image.Image, "save", half_a_save)
    with pytest.raises(Stop):
        save_frames(moving_gradient(), target)
    assert names(tmp_path) == [target.name] and target.read_bytes() == b"old"

    monkeypatch.undo()
    assert Image.Image.save is real_save
    save_frames(moving_gradient(), target)
    assert target.read_bytes() != b"old"


@pytest.mark.parametrize(("owner", "name"), [(Image.Image, "save"), (Path, "replace")])
def test_an_interrupted_picture_series_leaves_no_part_of_it(tmp_path, monkeypatch, owner, name):
    (tmp_path / "other.png").write_bytes(b"other")
    interrupt_at(monkeypatch, owner, name, 4)
    with pytest.raises(Stop):
        save_frames(moving_gradient(8), tmp_path / "out.png")
    assert names(tmp_path) == ["other.png"]


def test_a_full_disk_is_told_in_one_sentence(tmp_path, monkeypatch):
    def full(self, file, *args, **kwargs):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert "No space left" in refusal(save_frames, moving_gradient(2), tmp_path / "out.gif")
    assert names(tmp_path) == []


def test_check_output(tmp_path, monkeypatch):
    for suffix in video_file.SUFFIXES:
        assert check_output(str(tmp_path / f"out{suffix}")) == tmp_path / f"out{suffix}"
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    for name in ("out.avi", "out", ".mp4", "out.mp4.txt", ""):
        assert ".mp4, .gif, .webp, .png" in refusal(check_output, name)
    assert "does not exist" in refusal(check_output, tmp_path / "missing" / "out.mp4")
    assert "does not exist" in refusal(check_output, tmp_path / "file" / "out.mp4")
    assert "is a folder" in refusal(check_output, tmp_path / "folder.mp4")
    refusal(check_output, tmp_path / ("x" * 5000 + ".mp4"))
    assert not (tmp_path / "missing").exists()

    monkeypatch.setattr(video_file.os, "access", lambda *args: False)
    assert "cannot be written to" in refusal(check_output, tmp_path / "out.mp4")


def test_without_h264_the_next_encoder_is_used_and_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(video_writers, "_MP4_ENCODERS", ("no_such_encoder", "mpeg4"))
    frames = moving_gradient()
    with caplog.at_level(logging.WARNING):
        (target,) = save_frames(frames, tmp_path / "out.mp4")
    assert "mpeg4" in caplog.text
    assert psnr(read_video(target), frames) > 30

    monkeypatch.setattr(video_writers, "_MP4_ENCODERS", ("no_such_encoder",))
    assert ".gif" in refusal(check_output, tmp_path / "out.mp4")


def test_without_webp_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(video_file.features, "check", lambda name: False)
    assert "WebP" in refusal(check_output, tmp_path / "out.webp")


def test_refused_frames_and_rates(tmp_path):
    good = moving_gradient(2)
    for frames in (good.astype(np.float32), good[0], good[..., :2], good[:0], good.transpose(0, 3, 1, 2), [1, 2], None):
        assert "uint8" in refusal(save_frames, frames, tmp_path / "out.mp4")
    for fps in (0, -8, float("nan"), float("inf"), 1e9, 1e-9, None, "8", True):
        assert refusal(save_frames, good, tmp_path / "out.mp4", fps).startswith("fps ")
        with pytest.raises(UserError, match=r"^fps "), streaming([tmp_path / "out.mp4"], 1, 2, fps):
            pass
    assert names(tmp_path) == []
