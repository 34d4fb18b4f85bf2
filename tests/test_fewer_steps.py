"""Schedulers, guidance intervals, split guidance and presets, through the library call and through the U-Net's rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from consisti2v_rt import ImageToVideo, UserError
from consisti2v_rt.kernels.ddim import SchedulerConfig, ddim_table
from consisti2v_rt.kernels.schedulers import SCHEDULERS
from consisti2v_rt.runtime.loop.batches import BatchedUNet, batch_forwards, guidance_saving
from consisti2v_rt.runtime.loop.denoise import Guidance, denoise_clip
from consisti2v_rt.runtime.request.presets import PRESET_SETTINGS, PRESETS
from consisti2v_rt.runtime.request.settings import GenerationSettings
from consisti2v_rt.runtime.timings import Timings

pytestmark = pytest.mark.slow

FAST = {"num_inference_steps": 2, "seed": 3}
DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def animate() -> ImageToVideo:
    from consisti2v_rt.locations import ASSETS

    return ImageToVideo.from_bundle(ASSETS / "demo_bundle", device="cpu", threads=1)


class FakeUNet:
    """A session whose prediction tells which text, first frame and sample a row was given; counts its runs."""

    def __init__(self, rows: int) -> None:
        self.runs: list[int] = []
        self.allocate(rows)

    def allocate(self, rows: int) -> FakeUNet:
        self.inputs = {
            "sample": np.zeros((rows, 1, 2, 1, 1), np.float32),
            "first_frame_latents": np.zeros((rows, 1, 1, 1, 1), np.float32),
            "timestep": np.zeros(1, np.int64),
            "frame_stride": np.zeros(1, np.int64),
            "text": np.zeros((rows, 1), np.float32),
        }
        self.outputs = {"noise_pred": np.zeros((rows, 1, 2, 1, 1), np.float32)}
        return self

    def bind_input(self, name: str, array: np.ndarray) -> None:
        assert array.shape == self.inputs[name].shape
        self.inputs[name] = array

    def run(self) -> None:
        assert self.inputs["frame_stride"][0] == 3
        self.runs.append(len(self.inputs["sample"]))
        marks = self.inputs["text"][:, :, None, None, None] + 10 * self.inputs["first_frame_latents"]
        self.outputs["noise_pred"][...] = marks + 100 * self.inputs["sample"]


def rows_over(session: FakeUNet, branches: int, videos: int, free: bool) -> BatchedUNet:
    """Text of branch b and video v: 1 + b + v / 8."""
    texts = [[{"text": np.full((1, 1), 1 + b + v / 8, np.float32)} for v in range(videos)] for b in range(branches)]
    return BatchedUNet(session, texts, 3, Timings(), session.allocate if free else None)


@pytest.mark.parametrize(("rows", "free"), [(1, False), (2, False), (3, False), (4, False), (1, True), (2, True)])
@pytest.mark.parametrize("videos", [1, 2, 3])
def test_the_prompt_alone_is_the_last_branch(rows, free, videos):
    session = FakeUNet(rows)
    unet = rows_over(session, 2, videos, free)
    unet.start(np.arange(2 * videos, dtype=np.float32).reshape(2, videos, 1, 1, 1, 1))
    sample = np.arange(videos * 2, dtype=np.float32).reshape(videos, 1, 2, 1, 1)
    both = unet.predict(sample, 9)
    alone = unet.predict(sample, 9, guided=False)
    again = unet.predict(sample, 9)
    assert both.shape == (2, videos, 1, 2, 1, 1) and len(np.unique(both)) == both.size
    np.testing.assert_array_equal(alone, both[-1:])
    np.testing.assert_array_equal(again, both)


def test_a_free_batch_runs_no_padding_row():
    session = FakeUNet(2)
    unet = rows_over(session, 2, 1, free=True)
    unet.start(np.zeros((2, 1, 1, 1, 1, 1), np.float32))
    for guided in (False, True, True, False):
        unet.predict(np.zeros((1, 1, 2, 1, 1), np.float32), 9, guided)
    assert session.runs == [1, 2, 2, 1]


def test_a_second_clip_gets_its_own_first_frames():
    unet = rows_over(FakeUNet(2), 2, 1, free=False)
    sample = np.zeros((1, 1, 2, 1, 1), np.float32)
    seen = []
    for clip in (1, 2):
        unet.start(np.full((2, 1, 1, 1, 1, 1), clip, np.float32))
        seen.append((unet.predict(sample, 9)[-1].max(), unet.predict(sample, 9, guided=False).max()))
    assert seen == [(12.0, 12.0), (22.0, 22.0)]


def test_guidance_acts_in_its_steps_only():
    """Where the branches agree nothing changes; where they do not, the steps outside follow the prompt alone."""

    class TwoBranches:
        def __init__(self) -> None:
            self.guided: list[bool] = []

        def start(self, first_frames):
            pass

        def predict(self, sample, timestep, guided=True):
            self.guided.append(guided)
            preds = np.stack([0.1 * sample, 0.2 * sample])
            return preds if guided else preds[-1:]

    def run(steps: range | None) -> tuple[list[bool], np.ndarray]:
        unet = TwoBranches()
        noise = np.random.default_rng(0).standard_normal((1, 4, 3, 2, 2)).astype(np.float32)
        clip = denoise_clip(
            unet,
            noise[:, :, :1],
            noise[:, :, :1],
            noise,
            table=ddim_table(SchedulerConfig(), 5),
            guidance=Guidance("text", 7.5, 1.0, steps=steps),
            frame_init_plan=None,
            draw_noise=lambda shape: pytest.fail("no noise at eta 0"),
        )
        return unet.guided, clip

    flags, part = run(range(1, 4))
    assert flags == [False, True, True, True, False]
    everywhere, all_steps = run(None)
    assert all(everywhere)
    np.testing.assert_array_equal(all_steps, run(range(5))[1])
    assert not np.allclose(part, all_steps)


@pytest.fixture(scope="module")
def published(animate, photo) -> np.ndarray:
    return animate(photo, "a cat", num_inference_steps=2, guidance_scale_txt=1.0, seed=6).latents


@pytest.mark.parametrize("scheduler", SCHEDULERS[1:])
def test_every_scheduler_makes_its_own_video(animate, photo, published, scheduler):
    options = {"num_inference_steps": 2, "guidance_scale_txt": 1.0, "seed": 6, "scheduler": scheduler}
    latents = animate(photo, "a cat", **options).latents
    relative = np.linalg.norm(latents - published) / np.linalg.norm(published)
    # In exact arithmetic Euler steps are DDIM steps.
    assert relative < 1e-4 if scheduler == "euler" else relative > 1e-3
    assert np.isfinite(latents).all()


def test_a_scheduler_that_draws_noise_in_a_long_video(animate, photo):
    """One seed a video: each is what its seed gives alone, clip after clip."""
    options = {"num_inference_steps": 2, "guidance_scale_txt": 1.0, "scheduler": "lcm", "autoregress_steps": 2}
    seen = []
    both = animate(photo, ["a cat", "a dog"], callback=seen.append, seed=[5, 6], **options).latents
    assert [(s.clip, s.step, s.timestep) for s in seen] == [(0, 0, 999), (0, 1, 499), (1, 0, 999), (1, 1, 499)]
    alone = animate(photo, "a dog", seed=6, **options).latents
    np.testing.assert_allclose(both[1], alone[0], atol=5e-5)


def test_an_interval_of_all_steps_is_no_interval(animate, photo):
    guided = {**FAST, "guidance_scale_txt": 7.5}
    whole = animate(photo, "a cat", guidance_interval=(0.0, 1.0), **guided).latents
    assert np.array_equal(whole, animate(photo, "a cat", **guided).latents)
    part = animate(photo, "a cat", guidance_interval=[0.3, 1.0], **guided).latents
    assert np.isfinite(part).all() and not np.allclose(part, whole)


@pytest.mark.rare
def test_a_bundle_of_free_batch_splits_and_shrinks(dynamic_bundle, photo, relative_l2):
    """Joint or split, and with the prompt's row alone in some steps, through a real session that changes its batch."""
    animate = ImageToVideo.from_bundle(dynamic_bundle, device="cpu", threads=1)
    options = {"num_inference_steps": 4, "seed": 3, "guidance_interval": (0.25, 0.75)}
    joint, split = (animate(photo, "a cat", guidance_batch=batch, **options) for batch in ("joint", "split"))
    assert relative_l2(split.latents, joint.latents) < 1e-5
    everywhere = animate(photo, "a cat", num_inference_steps=4, seed=3).latents
    assert not np.allclose(joint.latents, everywhere, atol=1e-3)


def test_row_forwards_and_what_an_interval_saves(animate):
    manifest = animate.bundle.manifest

    def saving(rows: int | None, videos: int, **options) -> tuple[int, int | None]:
        model = dataclasses.replace(manifest.model, rows=rows)
        changed = dataclasses.replace(manifest, model=model)
        options = {"num_inference_steps": 10, "guidance_scale_txt": 7.5, **options}
        settings = GenerationSettings.from_options(options).resolved(changed)
        return batch_forwards(settings, videos, changed), guidance_saving(settings, videos, changed)

    part = {"guidance_interval": (0.0, 0.6)}
    assert saving(None, 1) == (20, None)
    assert saving(None, 1, **part) == (16, 4)
    assert saving(1, 3, **part) == (48, 12)
    assert saving(2, 1, **part) == (20, 0)
    assert saving(2, 2, **part) == (32, 8)
    assert saving(2, 1, guidance_scale_txt=1.0, **part) == (20, None)
    assert saving(None, 1, autoregress_steps=3, **part) == (48, 12)


@pytest.mark.parametrize("fixed", [True, False], ids=["two rows", "open batch"])
def test_generate_says_when_an_interval_saves_nothing(consisti2v, demo_bundle, photo, tmp_path, fixed):
    bundle = DATA / "untrained_bundle" if fixed else demo_bundle
    options = ["generate", "--bundle", bundle, "--image", photo, "--steps", "2", "--output", tmp_path / "out.gif"]
    outcome = consisti2v(*options, "--guidance-interval", "0:0.5", "--guidance-scale", "7.5", "--device", "cpu")
    assert outcome.code == 0
    assert ("saves no time" in outcome.stderr) == fixed


def test_presets_and_options_beside_them(animate):
    def resolved(base: GenerationSettings | None = None, **options: object) -> dict[str, object]:
        settings = GenerationSettings.from_options(options, base).resolved(animate.bundle.manifest)
        return {name: getattr(settings, name) for name in PRESET_SETTINGS}

    for name, preset in PRESETS.items():
        assert resolved(preset=name, num_inference_steps=None) == {"timesteps": None} | preset
    assert resolved(preset="fast", num_inference_steps=7)["num_inference_steps"] == 7
    base = GenerationSettings(seed=5, num_inference_steps=9, scheduler="unipc", guidance_interval=(0.0, 0.5))
    assert resolved(base, preset="balanced") == resolved(preset="balanced"), "it wins over the settings before it"
    assert resolved(base, timesteps=[800, 300])["num_inference_steps"] == 2
    timed = GenerationSettings(timesteps=(800, 300))
    assert resolved(timed, num_inference_steps=4)["timesteps"] is None


def test_a_preset_is_what_it_stands_for(animate, photo):
    options = {"num_inference_steps": 2, "seed": 3}
    steps = []
    preset = animate(photo, "a cat", preset="balanced", callback=lambda s: steps.append(s.steps), **options).latents
    assert steps == [2, 2], "an option beside the preset wins"
    assert np.array_equal(preset, animate(photo, "a cat", **{**PRESETS["balanced"], **options}).latents)


def test_timesteps_of_a_call(animate, photo):
    """Those of two DDIM steps, given, make the same video; others do not."""
    seen: list[int] = []
    options = {"seed": 3, "scheduler": "ddim", "guidance_scale_txt": 1.0}
    usual = animate(photo, "a cat", num_inference_steps=2, callback=lambda s: seen.append(s.timestep), **options)
    given = animate(photo, "a cat", timesteps=seen, **options)
    assert np.array_equal(given.latents, usual.latents) and given.settings.num_inference_steps == 2
    other = animate(photo, "a cat", timesteps=[900, 30], **options)
    assert not np.allclose(other.latents, usual.latents, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "quick"}, r"choose exact, balanced, fast\."),
        ({"timesteps": [300, 800]}, "give each once, highest first, from 999 to 0"),
        ({"timesteps": [800, 300.5]}, "give each once, highest first"),
        ({"timesteps": 5}, "give each once, highest first"),
        ({"timesteps": []}, "give each once, highest first"),
        ({"timesteps": [800, 300], "num_inference_steps": 3}, "2 timesteps do not fit 3"),
        ({"timesteps": [800], "scheduler": "lcm"}, "has timesteps of its own"),
        ({"scheduler": "heun"}, "choose ddim, dpmpp_2m, dpmpp_2m_karras, deis, deis_exponential, unipc, euler, lcm"),
        ({"scheduler": "unipc", "eta": 0.5}, "eta=0.5 belongs to the ddim scheduler"),
        ({"scheduler": "lcm", "num_inference_steps": 60}, "from 1 to 50"),
        ({"scheduler": "dpmpp_2m", "num_inference_steps": 999}, "too many for a multistep scheduler"),
        ({"guidance_interval": (0.6, 0.6)}, "is empty"),
        ({"guidance_interval": (0.8, 0.2)}, "is empty"),
        ({"guidance_interval": (0.0, 1.5)}, "from 0 to 1"),
        ({"guidance_interval": (0.0, float("nan"))}, "from 0 to 1"),
        ({"guidance_interval": 0.5}, "give two numbers"),
        ({"guidance_interval": (0.1, 0.2, 0.3)}, "give two numbers"),
        ({"guidance_interval": (0.5, 0.52), "num_inference_steps": 10}, "holds none of the 10 steps"),
        ({"guidance_batch": "half"}, "choose joint, split"),
    ],
)
def test_bad_settings_are_refused(animate, photo, options, message):
    with pytest.raises(UserError, match=message):
        animate.check(photo, "a cat", **options)


def test_split_guidance_is_for_a_free_batch(animate, photo):
    manifest = animate.bundle.manifest
    settings = GenerationSettings(guidance_batch="split")
    fixed = dataclasses.replace(manifest, model=dataclasses.replace(manifest.model, rows=2))
    with pytest.raises(UserError, match="always runs 2 rows at once"):
        settings.resolved(fixed)
    for rows in (None, 1):
        settings.resolved(dataclasses.replace(manifest, model=dataclasses.replace(manifest.model, rows=rows)))
