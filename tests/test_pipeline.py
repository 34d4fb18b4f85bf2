"""The library call: options, batches, seeds, long videos, callbacks, reuse."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from consisti2v_rt import ImageToVideo, UserError
from consisti2v_rt.runtime.bundle.bundle import Bundle, hash_files
from consisti2v_rt.runtime.bundle.manifest import TensorSpec
from consisti2v_rt.runtime.bundle.typed_json import MANIFEST_NAME

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PHOTO = ROOT / "assets" / "example.jpg"
FAST = {"num_inference_steps": 2, "guidance_scale_txt": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def animate() -> ImageToVideo:
    return ImageToVideo.from_bundle(ROOT / "assets" / "demo_bundle")


@pytest.fixture(scope="module")
def untrained() -> ImageToVideo:
    """A tiny model whose batch is fixed at two rows."""
    return ImageToVideo.from_bundle(ROOT / "tests" / "data" / "untrained_bundle")


@pytest.fixture(scope="module")
def fixed_demo(animate, tmp_path_factory) -> ImageToVideo:
    """The demo bundle with its batch fixed at two rows, in the manifest and in the graph."""
    onnx = pytest.importorskip("onnx")
    folder = Path(shutil.copytree(animate.bundle.path, tmp_path_factory.mktemp("fixed") / "bundle"))
    manifest = animate.bundle.manifest
    unet = manifest.stages["unet"]

    def fixed(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        shapes = (tuple(2 if size == "rows" else size for size in tensor.shape) for tensor in tensors)
        return tuple(dataclasses.replace(tensor, shape=shape) for tensor, shape in zip(tensors, shapes, strict=True))

    unet = dataclasses.replace(unet, inputs=fixed(unet.inputs), outputs=fixed(unet.outputs))
    graph = onnx.load(str(folder / unet.file), load_external_data=False)
    for value in (*graph.graph.input, *graph.graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param == "rows":
                size.dim_value = 2
    del graph.graph.value_info[:]
    (folder / unet.file).write_bytes(graph.SerializeToString())
    manifest = dataclasses.replace(
        manifest,
        model=dataclasses.replace(manifest.model, rows=2),
        stages=manifest.stages | {"unet": unet},
        files=manifest.files | hash_files(folder, [unet.file]),
    )
    (folder / MANIFEST_NAME).write_text(manifest.to_json())
    return ImageToVideo.from_bundle(folder)


@pytest.fixture(scope="module")
def size(animate) -> tuple[int, int, int]:
    model = animate.bundle.manifest.model
    return model.frames, model.height, model.width


def test_one_video(animate, size):
    videos = animate(PHOTO, "a cat", **FAST)
    assert videos.frames.shape == (1, *size, 3) and videos.frames.dtype == np.uint8
    assert videos.settings.seed == 3 and videos.settings.frameinit_noise_level == 850
    assert {"vae_encoder", "unet", "loop", "vae_decoder"} <= set(videos.timings)
    assert np.isfinite(videos.latents).all() and videos.frames.std() > 0


def test_a_seed_repeats_and_another_does_not(animate):
    one, again, other = (animate(PHOTO, "a cat", **{**FAST, "seed": seed}).latents for seed in (3, 3, 4))
    assert np.array_equal(one, again)
    assert not np.allclose(one, other)


def test_numpy_numbers_are_numbers(animate):
    options = {"num_inference_steps": np.int64(2), "guidance_scale_txt": np.float32(1.0), "seed": np.int32(3)}
    assert np.array_equal(animate(PHOTO, "a cat", **options).latents, animate(PHOTO, "a cat", **FAST).latents)


def test_a_drawn_seed_is_told_and_repeats(animate):
    first = animate(PHOTO, "a cat", **{**FAST, "seed": None})
    assert isinstance(first.settings.seed, int)
    again = animate(PHOTO, "a cat", **{**FAST, "seed": first.settings.seed})
    assert np.array_equal(first.latents, again.latents)


def test_seeds_per_video_give_the_videos_they_give_alone(animate):
    """The published code makes 4 samples of 2 generators; ours the 2 that are meant."""
    batch = animate(PHOTO, ["a cat", "a dog"], **{**FAST, "seed": [5, 6]}).latents
    alone = [animate(PHOTO, text, **{**FAST, "seed": seed}).latents[0] for text, seed in (("a cat", 5), ("a dog", 6))]
    np.testing.assert_allclose(batch, np.stack(alone), atol=2e-5)


def test_several_videos_per_prompt_are_prompt_major(animate):
    """Prompts x videos with FrameInit: the published code raises on a shape here."""
    videos = animate(PHOTO, ["a cat", "a dog"], num_videos_per_prompt=2, **FAST)
    assert len(videos.frames) == 4
    # One photo, one posterior sample: both videos of a prompt begin alike.
    assert np.array_equal(videos.latents[0, :, 0], videos.latents[1, :, 0])
    assert not np.allclose(videos.latents[0], videos.latents[1])


GUIDANCES = pytest.mark.parametrize(
    ("guidance", "branches"), [((7.5, 1.0), 2), ((7.5, 1.5), 3), ((1.0, 1.0), 1)], ids=["text", "both", "none"]
)


def guided(guidance: tuple[float, float]) -> dict:
    return {**FAST, "guidance_scale_txt": guidance[0], "guidance_scale_img": guidance[1], "guidance_rescale": 0.7}


@GUIDANCES
def test_an_open_batch_runs_as_many_rows_as_there_are_branches(animate, guidance, branches):
    """The demo bundle leaves its batch open: no row is spent on padding."""
    assert animate.bundle.manifest.model.rows is None
    assert np.isfinite(animate(PHOTO, "a cat", **guided(guidance)).latents).all()
    assert batches(animate) == branches


@GUIDANCES
def test_a_fixed_batch_takes_any_guidance(untrained, guidance, branches):
    """Two rows: one branch fills the other row with itself, three run in two turns."""
    assert untrained.bundle.manifest.model.rows == 2
    assert np.isfinite(untrained(PHOTO, "a cat", **guided(guidance)).latents).all()
    assert batches(untrained) == 2


def test_the_batch_changes_no_number(animate, fixed_demo):
    """The demo's own stages behind a batch fixed at two rows: a padding row and a second turn give the same video."""
    for guidance in ((1.0, 1.0), (7.5, 1.5)):
        one, other = (each(PHOTO, "a cat", **guided(guidance)).latents for each in (animate, fixed_demo))
        assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(one), guidance
    assert batches(fixed_demo) == 2


def batches(animate: ImageToVideo) -> int:
    """Rows of the U-Net's last run."""
    return animate._executor.stages.sessions["unet"].inputs["sample"].shape[0]


def test_a_long_video_goes_on_from_the_last_frame(animate, size):
    frames = size[0]
    videos = animate(PHOTO, "a cat", autoregress_steps=3, **FAST)
    assert videos.frames.shape[1] == 3 * frames - 2
    first_clip = animate(PHOTO, "a cat", **FAST).latents
    assert np.array_equal(videos.latents[:, :, :frames], first_clip)


@pytest.mark.parametrize("motion", ["pan_left", "pan_right", "zoom_in", "zoom_out"])
def test_camera_motion_changes_the_start(animate, motion):
    still = animate(PHOTO, "a cat", **FAST).latents
    moved = animate(PHOTO, "a cat", camera_motion=motion, **FAST).latents
    assert moved.shape == still.shape and not np.allclose(moved, still)


@pytest.mark.parametrize(
    "options",
    [
        {"noise_sampling_method": "vanilla"},
        {"noise_sampling_method": "pyoco_progressive", "noise_alpha": 2.0},
        {"use_frameinit": False},
        {"frameinit_filter": "butterworth", "frameinit_order": 2, "frameinit_d_s": 0.5},
        {"frameinit_filter": "box"},
        {"frameinit_filter": "ideal", "frameinit_noise_level": 999},
        {"eta": 1.0},
        {"frame_stride": 5},
        {"negative_prompt": "blurry", "guidance_scale_txt": 7.5},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()),
)
def test_every_option_matters(animate, options):
    plain = {**FAST, "guidance_scale_txt": options.get("guidance_scale_txt", 1.0)}
    assert not np.allclose(
        animate(PHOTO, "a cat", **{**plain, **options}).latents, animate(PHOTO, "a cat", **plain).latents
    )


@pytest.mark.parametrize("name", ["frameinit_d_s", "frameinit_d_t"])
@pytest.mark.parametrize("value", [1e-320, 1e-200, 9e-7])
def test_stop_frequencies_whose_squares_are_no_numbers_are_refused(animate, name, value):
    with pytest.raises(UserError, match=f"{name}.*give 0, or a number from 1e-06 to 1"):
        animate.check(PHOTO, "a cat", **{**FAST, name: value})


def test_given_noise_replaces_the_drawn_one(animate):
    drawn = animate(PHOTO, "a cat", **FAST)
    noise = np.random.default_rng(0).standard_normal(drawn.latents.shape).astype(np.float32)
    given = animate(PHOTO, "a cat", latents=noise, **FAST)
    assert not np.allclose(given.latents[:, :, 1:], drawn.latents[:, :, 1:])
    assert np.array_equal(given.latents[:, :, :1], drawn.latents[:, :, :1])
    with pytest.raises(UserError, match="latents must be finite"):
        animate(PHOTO, "a cat", latents=noise[:, :, 1:], **FAST)


def test_callback_sees_every_step(animate):
    seen = []
    animate(PHOTO, "a cat", autoregress_steps=2, callback=seen.append, **FAST)
    assert [(s.clip, s.step, s.timestep) for s in seen] == [(0, 0, 501), (0, 1, 1), (1, 0, 501), (1, 1, 1)]
    assert seen[0].latents.ndim == 5 and seen[0].steps == 2 and seen[0].clips == 2


def test_a_second_call_loads_nothing(animate, monkeypatch):
    animate(PHOTO, "a cat", **FAST)
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *args, **kwargs: pytest.fail("a stage was loaded again"))
    again = animate(PHOTO, "a cat", **FAST).timings
    assert "text_encoder" not in again, "the prompt's keys and values are kept"


def test_images_and_prompts_pair_up(animate):
    grey = np.full((40, 60, 3), 128, np.uint8)
    videos = animate([PHOTO, grey], ["a cat", "fog"], **FAST)
    assert len(videos.frames) == 2 and not np.array_equal(videos.frames[0, 0], videos.frames[1, 0])
    assert len(animate([PHOTO, grey], "a cat", **FAST).frames) == 2
    with pytest.raises(UserError, match="2 images for 3 prompts"):
        animate([PHOTO, grey], ["a", "b", "c"], **FAST)


def test_unknown_options_name_the_nearest(animate):
    with pytest.raises(UserError, match="did you mean num_inference_steps"):
        animate(PHOTO, "a cat", num_inference_step=3)


def test_save_writes_every_video(animate, tmp_path):
    videos = animate(PHOTO, ["a cat", "a dog"], **FAST)
    assert [file.name for file in videos.save(tmp_path / "out.mp4")] == ["out-0.mp4", "out-1.mp4"]
    assert [file.name for file in videos.save(tmp_path / "out.gif")] == ["out-0.gif", "out-1.gif"]


def test_a_long_prompt_is_cut_with_a_warning(animate, caplog):
    animate(PHOTO, "cat " * 100, **FAST)
    assert "longer than the model's 77 tokens" in caplog.text


def test_opening_again_without_hashing(animate):
    assert Bundle.open(animate.bundle.path, verify=False).manifest == animate.bundle.manifest
