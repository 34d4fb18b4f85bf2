"""Bundles of several sizes: which one a photo gets, what engines are built for, and camera motion in any shape."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consisti2v_rt import ImageToVideo, UserError
from consisti2v_rt.export.engines.shapes import engine_shapes, parse_ranges
from consisti2v_rt.export.request import parse_sizes
from consisti2v_rt.export.unet.config import UNetConfig
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.media.fit import camera_motion_crops
from consisti2v_rt.runtime.media.image import image_size, load_image, preprocess

pytestmark = pytest.mark.slow

FAST = {"num_inference_steps": 1, "guidance_scale_txt": 1.0, "seed": 1}


def photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_size_of_a_photo_is_that_of_the_upright_picture(orientation: int) -> None:
    content = encoded(photo(60, 40), orientation)
    image = load_image(content)
    assert image_size(content) == (image.height, image.width) == ((60, 40) if orientation == 6 else (40, 60))
    assert image_size(photo(60, 40)) == (40, 60)
    assert image_size(np.zeros((20, 30, 3), np.uint8)) == (20, 30)
    with pytest.raises(UserError, match="pass its bytes"):
        image_size(io.BytesIO(content))


def test_fit_auto_takes_the_nearest_size(dynamic_bundle: Path) -> None:
    with ImageToVideo.from_bundle(dynamic_bundle, device="cpu") as animate:
        wide, square = photo(200, 120), photo(100, 90)
        for image, width in ((wide, 96), (square, 64), (encoded(wide, 6), 64)):
            settings = animate.check(image, "a cat", fit="auto").settings
            assert (settings.height, settings.width, settings.fit) == (64, width, "crop")
        videos = animate(wide, "a cat", fit="auto", **FAST)
        assert videos.frames.shape[2:4] == (64, 96)
        assert np.array_equal(videos.frames, animate(wide, "a cat", height=64, width=96, **FAST).frames)
        with pytest.raises(UserError, match="need the sizes 64x64 and 96x64"):
            animate.check([wide, square], ["a", "b"], fit="auto")
        with pytest.raises(UserError, match="leave both out"):
            animate.check(wide, "a", fit="auto", width=96)


def test_fit_auto_is_crop_where_there_is_one_size(demo_bundle: Path) -> None:
    with ImageToVideo.from_bundle(demo_bundle, device="cpu") as animate:
        assert animate.check(photo(200, 120), "a cat", fit="auto").settings.fit == "crop"


def test_camera_motion_in_a_wide_video_starts_from_the_published_crop(dynamic_bundle: Path) -> None:
    rows, columns = np.mgrid[:150, :300] / 25
    waves = 127 + 120 * np.stack([np.sin(columns), np.cos(rows), np.sin(rows + columns)], axis=2)
    image, height, width = Image.fromarray(waves.astype(np.uint8)), 64, 96
    first = preprocess(image, height, width)[0]
    pan = camera_motion_crops(image, "pan_right", 4, height, width)
    size = int(64 * 300 / 150)
    assert pan.shape == (4, 3, height, width)
    # A pan begins at the left edge; the published crop is the centre.
    centre = camera_motion_crops(image, "pan_right", 2 * (size - width), height, width)[size - width]
    assert np.abs(centre - first).max() < 1e-6
    for motion, whole in (("zoom_in", 0), ("zoom_out", -1)):
        crops = camera_motion_crops(image, motion, 1 if motion == "zoom_in" else 400, height, width)
        assert crops.shape[1:] == (3, height, width)
        # Seen at twice the size first, as published: close to the crop, not equal.
        assert np.corrcoef(crops[whole].ravel(), first.ravel())[0, 1] > 0.99
    with ImageToVideo.from_bundle(dynamic_bundle, device="cpu") as animate:
        videos = animate(image, "a cat", height=height, width=width, camera_motion="pan_left", **FAST)
        assert videos.frames.shape[2:4] == (height, width)


def test_engines_have_a_profile_for_each_size_and_batch(dynamic_bundle: Path) -> None:
    manifest = Bundle.open(dynamic_bundle).manifest
    unet = engine_shapes(manifest.stages["unet"], manifest.model, {})
    widths = [(profile.rows, profile.inputs["sample"].optimum[-2:]) for profile in unet.profiles]
    assert widths == [(rows, (8, width)) for width in (8, 12) for rows in (1, 2, 3)]
    decoder = engine_shapes(manifest.stages["vae_decoder"], manifest.model, {})
    found = [(profile.rows, profile.inputs["latents"]) for profile in decoder.profiles]
    assert [(rows, sizes.optimum[0], sizes.optimum[-2:]) for rows, sizes in found] == [
        (None, frames, (8, width)) for width in (8, 12) for frames in (1, 4)
    ]
    assert all(sizes.minimum == sizes.optimum == sizes.maximum for _, sizes in found)
    assert engine_shapes(manifest.stages["text_encoder"], manifest.model, {}).profiles == ()
    ranges = parse_ranges(["width=64:64:128"], manifest.model)
    assert len(engine_shapes(manifest.stages["unet"], manifest.model, ranges).profiles) == 3
    (decoder,) = engine_shapes(manifest.stages["vae_decoder"], manifest.model, ranges).profiles
    latents = decoder.inputs["latents"]
    assert (latents.minimum, latents.optimum, latents.maximum) == ((1, 4, 8, 8), (4, 4, 8, 8), (4, 4, 8, 16)), (
        "its attention fuses with an open batch"
    )
    one = dataclasses.replace(manifest.model, sizes=())
    assert len(engine_shapes(manifest.stages["unet"], one, {}).profiles) == 3


def test_sizes_are_checked_before_anything_is_loaded() -> None:
    config = UNetConfig()
    assert parse_sizes("256x256, 512x320", config, 8) == ((256, 256), (320, 512))
    for text, part in (
        ("256", "is no size"),
        ("256x256,256X256", "twice"),
        ("250x256", "multiples of 64"),
        ("²x256", "is no size"),
        (",".join(f"{64 * n}x64" for n in range(1, 18)), "at most 16"),
    ):
        with pytest.raises(UserError, match=part):
            parse_sizes(text, config, 8)


@pytest.mark.parametrize("sizes", [[[64, 64], [64, 64]], [[64, 96]], [[64, 64], [64, 90]], [[64, 64], [64]]])
def test_a_manifest_with_impossible_sizes_is_refused(
    sizes: list[list[int]], dynamic_bundle: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(dynamic_bundle, tmp_path / "bundle"))
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["model"]["sizes"] = sizes
    (folder / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"entry model\.sizes"):
        Bundle.open(folder)
