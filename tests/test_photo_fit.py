"""Photos of another aspect than the video, and the size of files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from consisti2v_rt import GeneratedVideos, GenerationSettings, UserError
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.media.fit import camera_motion_crops, cropped_shares, fit_image
from consisti2v_rt.runtime.media.image import preprocess
from consisti2v_rt.runtime.media.video_file import scaled
from consisti2v_rt.runtime.timings import Timings


def halves(width: int, height: int) -> Image.Image:
    """Red at the left end, blue at the right one, white between."""
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[:, : width // 4] = (255, 0, 0)
    pixels[:, -(width // 4) :] = (0, 0, 255)
    return Image.fromarray(pixels)


def test_crop_is_the_published_preprocessing():
    photo = halves(120, 60)
    np.testing.assert_array_equal(fit_image(photo, 32, 32, "crop"), preprocess(photo, 32, 32))


def test_pad_keeps_everything_between_black_bars():
    (fitted,) = fit_image(halves(120, 60), 32, 32, "pad")
    assert (fitted[:, :8] == -1).all() and (fitted[:, -8:] == -1).all()
    np.testing.assert_array_equal(fitted[:, 16, 0], [1, -1, -1])
    np.testing.assert_array_equal(fitted[:, 16, -1], [-1, -1, 1])
    (upright,) = fit_image(halves(60, 120), 32, 32, "pad")
    assert (upright[..., :8] == -1).all() and (upright[..., -8:] == -1).all()


def test_stretch_fills_the_video_with_everything():
    (fitted,) = fit_image(halves(120, 60), 32, 48, "stretch")
    assert fitted.shape == (3, 32, 48)
    np.testing.assert_array_equal(fitted[:, 0, 0], [1, -1, -1])
    np.testing.assert_array_equal(fitted[:, -1, -1], [-1, -1, 1])


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_a_square_photo_needs_no_fit(fit):
    photo = halves(60, 60)
    np.testing.assert_array_equal(fit_image(photo, 32, 32, fit), preprocess(photo, 32, 32))


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_a_zoom_moves_over_the_whole_photo(fit):
    crops = camera_motion_crops(halves(120, 60), "zoom_in", 4, 32, 32, fit)
    np.testing.assert_allclose(crops[0, :, 16, 0], [1, -1, -1], atol=0.01)
    assert crops.shape == (4, 3, 32, 32) and not np.array_equal(crops[0], crops[3])
    square = halves(60, 60)
    np.testing.assert_array_equal(
        camera_motion_crops(square, "zoom_out", 4, 32, 32, fit), camera_motion_crops(square, "zoom_out", 4, 32, 32)
    )


def test_settings_refuse_what_does_not_fit(demo_bundle):
    manifest = Bundle.open(demo_bundle, verify=False).manifest
    for options, said in (
        ({"fit": "cover"}, "fit 'cover' is unknown: choose crop, pad, stretch"),
        ({"fit": "pad", "camera_motion": "pan_left"}, "leave fit at crop"),
        ({"use_frameinit": "no"}, "use_frameinit 'no'"),
        *(({"fps": fps}, "fps ") for fps in (0, -1, float("nan"), 1e9, True, "8")),
    ):
        with pytest.raises(UserError, match=said):
            GenerationSettings.from_options(options).resolved(manifest)
    GenerationSettings.from_options({"fit": "pad", "camera_motion": "zoom_in"}).resolved(manifest)


def test_cropped_shares():
    assert cropped_shares(300, 451, 64, 64) == pytest.approx((0, 1 / 3), abs=0.01)
    assert cropped_shares(451, 300, 64, 64) == pytest.approx((1 / 3, 0), abs=0.01)
    assert cropped_shares(64, 64, 256, 256) == (0, 0)
    # The published rule enlarges the smaller side to the height: an upright photo loses on both sides here.
    assert cropped_shares(400, 200, 100, 60) == pytest.approx((0.5, 0.4))


def test_scaled():
    frame = np.asarray(halves(40, 20))
    assert scaled(frame, 1) is frame
    assert scaled(frame, 2.5).shape == (50, 100, 3) and scaled(frame, 0.8).shape == (16, 32, 3)
    np.testing.assert_array_equal(scaled(frame, 2)[20, [0, -1]], [(255, 0, 0), (0, 0, 255)])
    for scale in (0, -1, float("nan"), 17, 0.5, "2", None, True):
        with pytest.raises(UserError, match=r"^scale "):
            scaled(frame, scale)
    with pytest.raises(UserError, match="4096"):
        scaled(np.zeros((300, 300, 3), np.uint8), 16)


def test_save_takes_a_scale_and_refuses_a_rate_of_0(tmp_path):
    frames = np.stack([np.asarray(halves(40, 20))] * 2)[None]
    videos = GeneratedVideos(frames, np.zeros(1, np.float32), replace(GenerationSettings(), fps=5), Timings())
    written = videos.save(tmp_path / "out.png", scale=3)
    assert [Image.open(file).size for file in written] == [(120, 60)] * 2
    for fps in (0, -1, float("nan"), float("inf"), 1e9):
        with pytest.raises(UserError, match=r"^fps "):
            videos.save(tmp_path / "out.mp4", fps=fps)
    assert not (tmp_path / "out.mp4").exists()
    (gif,) = videos.save(tmp_path / "out.gif")
    assert Image.open(gif).info["duration"] in (200, 400)
