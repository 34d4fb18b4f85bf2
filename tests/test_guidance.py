"""Guidance: modes, formulas, and one step of each published loop."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from consisti2v_rt.kernels.ddim import SchedulerConfig, ddim_table
from consisti2v_rt.kernels.guidance import BRANCHES, combine_guidance, guidance_mode, guidance_weights, guided_steps
from consisti2v_rt.kernels.sampler import sampler_step


@pytest.mark.parametrize(
    ("scale_txt", "scale_img", "mode"),
    [
        (7.5, 1.0, "text"),
        (7.5, 1.5, "both"),
        (1.0, 1.5, "both"),
        (0.0, 1.5, "both"),
        (1.0, 1.0, "none"),
        (0.5, 0.0, "none"),
        (1.01, 0.0, "text"),
    ],
)
def test_mode(scale_txt, scale_img, mode):
    assert guidance_mode(scale_txt, scale_img) == mode


@pytest.mark.parametrize(
    "loop",
    [
        "no_cfg",
        "text_cfg",
        "text_cfg_rescale07",
        "text_cfg_batch2",
        "text_cfg_nvpp2",
        "both_cfg",
        "text_cfg_trailing_zsnr_v",
    ],
)
def test_first_step_of_the_published_loop(golden, golden_json, relative_l2, loop):
    """Raw U-Net output of all branches -> guidance -> DDIM -> the published latents after step 0."""
    tensors = load_file(golden / "pipeline" / f"{loop}.safetensors")
    record = golden_json("pipeline/index.json")[loop]
    kwargs = record["kwargs"]
    scales = kwargs["guidance_scale_txt"], kwargs["guidance_scale_img"]
    mode = guidance_mode(*scales)
    latents = tensors["chunk0.frameinit"][:, :, 1:]
    preds = tensors["chunk0.eps0"].reshape(BRANCHES[mode], *latents.shape)
    guided = combine_guidance(preds, mode, *scales, kwargs["guidance_rescale"])
    assert guided.dtype == np.float32
    table = ddim_table(SchedulerConfig.from_dict(record["scheduler"]), kwargs["num_inference_steps"], kwargs["eta"])
    assert table.timesteps.tolist() == record["timesteps"]
    step = sampler_step(latents[None], guided, table.matrices[0])[0]
    assert relative_l2(step, tensors["chunk0.step0.latents"]) < 1e-6


def branches(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 2, 4, 3, 5, 6)).astype(np.float32)


@pytest.mark.parametrize(("mode", "scales"), [("text", (7.5, 1.0)), ("both", (7.5, 1.5))])
def test_full_rescale_gives_the_std_of_the_prompt_branch(mode, scales):
    preds = branches(BRANCHES[mode])
    guided = combine_guidance(preds, mode, *scales, rescale=1.0)
    for sample in range(2):
        assert guided[sample].std(ddof=1) == pytest.approx(preds[-1, sample].std(ddof=1), rel=1e-6)


def test_rescale_blends():
    preds = branches(3)
    off, half, full = (combine_guidance(preds, "both", 7.5, 1.5, r) for r in (0.0, 0.5, 1.0))
    np.testing.assert_allclose(half, (off + full) / 2, rtol=1e-5, atol=1e-5)


def test_scales_of_one_give_the_prompt_branch(relative_l2):
    for mode, count in (("text", 2), ("both", 3)):
        preds = branches(count)
        assert relative_l2(combine_guidance(preds, mode, 1.0, 1.0), preds[-1]) < 1e-6


def test_none_is_the_prediction_itself():
    preds = branches(1)
    np.testing.assert_array_equal(combine_guidance(preds, "none", 1.0, 1.0, rescale=0.7), preds[0])


@pytest.mark.parametrize(
    ("mode", "scales"), [("none", (1.0, 1.0)), ("text", (7.5, 1.0)), ("both", (7.5, 1.5)), ("both", (0.0, 2.0))]
)
def test_weights_say_the_same_as_the_formula(relative_l2, mode, scales):
    preds = branches(BRANCHES[mode])
    weights = guidance_weights(mode, *scales, steps=4, guided=range(1, 3))
    assert weights.shape == (4, BRANCHES[mode]) and weights.dtype == np.float32
    for step in (1, 2):
        combined = np.tensordot(weights[step], preds, axes=1)
        assert relative_l2(combined, combine_guidance(preds, mode, *scales)) < 1e-6
    for step in (0, 3):
        np.testing.assert_array_equal(np.tensordot(weights[step], preds, axes=1), preds[-1])


@pytest.mark.parametrize(
    ("interval", "steps", "expected"),
    [
        ((0.0, 1.0), 50, range(50)),
        ((0.2, 0.8), 50, range(10, 40)),
        ((0.1, 0.9), 30, range(3, 27)),
        ((0.25, 0.75), 10, range(3, 8)),
        ((0.0, 0.5), 1, range(1)),
        ((0.5, 0.52), 10, range(5, 5)),
    ],
)
def test_an_interval_in_steps(interval, steps, expected):
    assert guided_steps(*interval, steps) == expected


def test_the_input_is_left_alone():
    preds = branches(2)
    before = preds.copy()
    combine_guidance(preds, "text", 7.5, 1.0, rescale=0.7)
    np.testing.assert_array_equal(preds, before)


def test_bad_guidance_is_refused():
    preds = branches(2)
    with pytest.raises(ValueError, match="combines 3 predictions, not 2"):
        combine_guidance(preds, "both", 7.5, 1.5)
