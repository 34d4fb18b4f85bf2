"""The scheduler against diffusers' DDIMScheduler as the published pipeline used it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file

from consisti2v_rt.kernels.ddim import (
    SchedulerConfig,
    add_noise,
    alphas_cumprod,
    ddim_table,
    ddim_timesteps,
)
from consisti2v_rt.kernels.sampler import sampler_step

CONFIGS = {
    "shipped": SchedulerConfig(),
    "zsnr": SchedulerConfig(rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction"),
}


@pytest.fixture(scope="module")
def tensors(golden):
    return load_file(golden / "pipeline" / "scheduler.safetensors")


def test_shipped_schedule_bit_for_bit(tensors):
    np.testing.assert_array_equal(alphas_cumprod(CONFIGS["shipped"]), tensors["shipped.alphas_cumprod"])


def test_zero_snr_schedule(tensors):
    """torch's square root here is Intel's, an ulp off now and then, and dividing neighbours makes more of it."""
    ours, theirs = alphas_cumprod(CONFIGS["zsnr"]), tensors["zsnr.alphas_cumprod"]
    np.testing.assert_allclose(ours, theirs, rtol=5e-6, atol=0)
    assert ours[-1] == 0


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("steps", [5, 25, 30, 50])
def test_timesteps(golden_json, name, steps):
    timesteps = ddim_timesteps(CONFIGS[name], steps)
    assert timesteps.dtype == np.int64
    assert timesteps.tolist() == golden_json("pipeline/scheduler.json")[name][f"timesteps{steps}"]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_step_count_gives_that_many_valid_timesteps(spacing):
    config = SchedulerConfig(timestep_spacing=spacing)
    for steps in range(1, 1000):
        timesteps = ddim_timesteps(config, steps)
        assert len(timesteps) == steps
        assert timesteps[-1] >= 0 and timesteps[0] <= 999
        assert (np.diff(timesteps) < 0).all()


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("name", CONFIGS)
def test_steps(tensors, relative_l2, name, eta):
    sample, output, noise = (tensors[f"{name}.{key}"] for key in ("x", "e", "variance_noise"))
    table = ddim_table(CONFIGS[name], 50, eta)
    assert table.matrices.shape == (50, 1, 3)
    assert table.matrices.dtype == np.float32 and table.matrices.flags.c_contiguous
    assert table.needs_noise == (eta > 0)
    suffix = f".eta{eta:g}".replace("0.5", "0p5")
    keys = [key for key in tensors if key.startswith(f"{name}.step_t") and key.endswith(suffix)]
    assert len(keys) == 3
    for key in keys:
        t = int(key.split(".")[1].removeprefix("step_t"))
        matrix = table.matrices[table.timesteps.tolist().index(t)]
        result = sampler_step(sample[None], output, matrix, noise)[0]
        assert result.dtype == np.float32
        assert relative_l2(result, tensors[key]) < 1e-6, key


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("timestep", [0, 850, 999])
def test_add_noise(tensors, relative_l2, name, timestep):
    abar = alphas_cumprod(CONFIGS[name])[timestep]
    noisy = add_noise(tensors[f"{name}.x"], tensors[f"{name}.variance_noise"], abar)
    assert noisy.dtype == np.float32
    assert relative_l2(noisy, tensors[f"{name}.add_noise_t{timestep}"]) < 1e-6


@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_prediction_types_agree_on_the_same_clean_sample(relative_l2, prediction, set_alpha_to_one):
    """Whatever form a perfect model answers in, a step goes to the same point of the same path."""
    rng = np.random.default_rng(0)
    clean, noise = rng.standard_normal((2, 1, 4, 3, 8, 8)).astype(np.float32)
    config = SchedulerConfig(prediction_type=prediction, set_alpha_to_one=set_alpha_to_one)
    table = ddim_table(config, 10)
    abar = alphas_cumprod(config).astype(np.float64)
    for t, matrix in zip(table.timesteps, table.matrices, strict=True):
        sample = add_noise(clean, noise, abar[t])
        velocity = np.float32(np.sqrt(abar[t])) * noise - np.float32(np.sqrt(1 - abar[t])) * clean
        output = {"epsilon": noise, "sample": clean, "v_prediction": velocity}[prediction]
        abar_prev = abar[t - 100] if t >= 100 else (1.0 if set_alpha_to_one else abar[0])
        assert relative_l2(sampler_step(sample[None], output, matrix)[0], add_noise(clean, noise, abar_prev)) < 2e-6


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_against_diffusers_in_float64(relative_l2, schedule, spacing, prediction):
    """In float32 diffusers' own steps lose up to 2e-5 to cancellation at eta 1; the float64 of it is what is meant."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    config = SchedulerConfig(
        beta_schedule=schedule, timestep_spacing=spacing, prediction_type=prediction, set_alpha_to_one=False
    )
    theirs = diffusers.DDIMScheduler(**dataclasses.asdict(config), clip_sample=False)
    np.testing.assert_array_max_ulp(alphas_cumprod(config), theirs.alphas_cumprod.numpy(), maxulp=1)
    theirs.alphas_cumprod = torch.tensor(alphas_cumprod(config), dtype=torch.float64)
    theirs.final_alpha_cumprod = theirs.alphas_cumprod[0]
    theirs.set_timesteps(20)
    table = ddim_table(config, 20, eta=1.0)
    assert table.timesteps.tolist() == theirs.timesteps.tolist()
    sample, output, noise = np.random.default_rng(0).standard_normal((3, 1, 4, 3, 8, 8)).astype(np.float32)
    x, e, z = (torch.from_numpy(array).double() for array in (sample, output, noise))
    for t, matrix in zip(table.timesteps, table.matrices, strict=True):
        expected = theirs.step(e, int(t), x, eta=1.0, variance_noise=z)
        assert relative_l2(sampler_step(sample[None], output, matrix, noise)[0], expected.prev_sample) < 1e-6


def test_from_dict_reads_a_diffusers_configuration():
    config = SchedulerConfig.from_dict(
        {
            "_class_name": "DDIMScheduler",
            "_diffusers_version": "0.8.0",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "clip_sample": False,
            "clip_sample_range": 1.0,
            "skip_prk_steps": True,
            "thresholding": False,
            "trained_betas": None,
            "set_alpha_to_one": False,
            "steps_offset": 1,
        }
    )
    assert config == SchedulerConfig(beta_schedule="scaled_linear", set_alpha_to_one=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_karras_sigmas": True}, "Unknown scheduler option 'use_karras_sigmas'"),
        ({"clip_sample": True}, "clip_sample=True is not supported"),
        ({"thresholding": True}, "thresholding=True is not supported"),
        ({"trained_betas": [0.1]}, "trained_betas"),
        ({"beta_schedule": "cosine"}, "choose linear, scaled_linear, squaredcos_cap_v2"),
        ({"prediction_type": "flow"}, "prediction_type='flow'"),
        ({"timestep_spacing": None}, "timestep_spacing=None"),
        ({"steps_offset": -1}, "steps_offset=-1"),
        ({"num_train_timesteps": 1000.0}, "whole number"),
        ({"beta_start": 0}, "beta_start=0"),
        ({"set_alpha_to_one": 1}, "true or false"),
    ],
)
def test_options_that_would_change_results_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SchedulerConfig.from_dict(values)


def test_bad_runs_are_refused():
    with pytest.raises(ValueError, match="from 1 to 1000"):
        ddim_timesteps(SchedulerConfig(), 0)
    with pytest.raises(ValueError, match="from 1 to 1000"):
        ddim_timesteps(SchedulerConfig(), 1001)
    with pytest.raises(ValueError, match="begin at timestep 1000"):
        ddim_timesteps(SchedulerConfig(), 1000)
    with pytest.raises(ValueError, match="eta="):
        ddim_table(SchedulerConfig(), 10, eta=1.5)
    zero_snr = SchedulerConfig(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(ValueError, match="v_prediction"):
        ddim_table(zero_snr, 10)
    matrix = ddim_table(SchedulerConfig(), 10, eta=0.5).matrices[0]
    x = np.zeros((1, 4, 3, 8, 8), np.float32)
    with pytest.raises(ValueError, match="got none"):
        sampler_step(x[None], x, matrix)
