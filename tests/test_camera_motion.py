"""Camera motion: the published crop boxes, and the crops themselves against torch."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from consisti2v_rt.runtime.media.fit import camera_motion_crops, pan_boxes, zoom_boxes
from consisti2v_rt.runtime.media.image import covering_size, preprocess
from consisti2v_rt.runtime.request.option_table import CAMERA_MOTIONS

RNG = np.random.default_rng(11)


def photo(height: int, width: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_golden_boxes(golden_json):
    cases = golden_json("camera_motion.json")
    assert len(cases) == 14
    for name, expected in cases.items():
        match = re.match(r"(\w+) (\d+)x(\d+) n(\d+) cw(\d+)", name)
        assert match, name
        motion = match[1]
        height, width, frames, side = (int(part) for part in match.groups()[1:])
        if motion.startswith("pan"):
            boxes = pan_boxes(motion, frames, height, width, side, side)
            assert [box.left for box in boxes] == expected, name
            assert {(box.height, box.width) for box in boxes} == {(side, side)}
            assert {box.top for box in boxes} == {round((height - side) / 2)}
        else:
            assert [list(box) for box in zoom_boxes(motion, frames, height, width)] == expected, name


@pytest.mark.parametrize("motion", CAMERA_MOTIONS)
@pytest.mark.parametrize("size", [(120, 200), (200, 120), (90, 90)])
@pytest.mark.parametrize("frames", [1, 5, 16])
def test_boxes_stay_inside_the_image(motion, size, frames):
    if motion.startswith("pan"):
        boxes = pan_boxes(motion, frames, *size, min(size), min(size))
    else:
        boxes = zoom_boxes(motion, frames, *size)
    assert len(boxes) == frames
    for box in boxes:
        assert box.top >= 0 and box.left >= 0 and box.height == box.width > 0
        assert box.top + box.height <= size[0] and box.left + box.width <= size[1]


@pytest.mark.parametrize("motion", CAMERA_MOTIONS)
@pytest.mark.parametrize("image_size", [(300, 451), (451, 300), (64, 64), (16, 400)])
def test_crops_equal_torch(motion, image_size):
    torch = pytest.importorskip("torch")
    image = photo(*image_size)
    side, frames = 64, 5

    def resize(tensor, size):
        return torch.nn.functional.interpolate(tensor, size=size, mode="bilinear", align_corners=False, antialias=False)

    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)[None]
    scaled = side if motion.startswith("pan") else 2 * side
    size = covering_size(*image_size, scaled, scaled)
    tensor = resize(tensor, size).sub(0.5).div(0.5)
    if motion.startswith("pan"):
        boxes = pan_boxes(motion, frames, *size, side, side)
    else:
        boxes = zoom_boxes(motion, frames, *size)
    expected = []
    for top, left, height, width in boxes:
        crop = tensor[:, :, top : top + height, left : left + width].contiguous()
        expected.append(crop if motion.startswith("pan") else resize(crop, (side, side)))
    got = camera_motion_crops(image, motion, frames, side, side)
    assert got.shape == (frames, 3, side, side) and got.dtype == np.float32 and got.flags.c_contiguous
    assert np.abs(got - torch.cat(expected).numpy()).max() <= 1e-6


def test_directions():
    """A ramp that brightens to the right: panning right brightens, panning left darkens."""
    ramp = np.broadcast_to(np.linspace(0, 255, 160).astype(np.uint8)[None, :, None], (64, 160, 3))
    right = camera_motion_crops(Image.fromarray(ramp.copy()), "pan_right", 6, 64, 64).mean(axis=(1, 2, 3))
    left = camera_motion_crops(Image.fromarray(ramp.copy()), "pan_left", 6, 64, 64).mean(axis=(1, 2, 3))
    assert (np.diff(right) > 0).all() and (np.diff(left) < 0).all()

    # A bright spot on black fills more of the frame the closer the camera is.
    spot = np.zeros((128, 128, 3), np.uint8)
    spot[48:80, 48:80] = 255
    near = camera_motion_crops(Image.fromarray(spot), "zoom_in", 6, 64, 64).mean(axis=(1, 2, 3))
    far = camera_motion_crops(Image.fromarray(spot), "zoom_out", 6, 64, 64).mean(axis=(1, 2, 3))
    assert (np.diff(near) > 0).all() and (np.diff(far) < 0).all()


def test_an_upright_photo_does_not_pan_and_takes_the_middle():
    image = photo(300, 100)
    crops = camera_motion_crops(image, "pan_left", 4, 64, 64)
    for crop in crops:
        np.testing.assert_array_equal(crop, preprocess(image, 64, 64)[0])
