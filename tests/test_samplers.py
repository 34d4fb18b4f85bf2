"""Every scheduler's step table against diffusers' own scheduler, and what tables promise by themselves.

diffusers computes in float32 and loses up to 1e-4 to cancellation in log sigma over a thousand steps; what it means is
its own code on its own noise levels in float64, and that is what the strict comparison runs.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from consisti2v_rt.kernels.ddim import SchedulerConfig, alphas_cumprod
from consisti2v_rt.kernels.sampler import StepTable, sampler_step
from consisti2v_rt.kernels.schedulers import SCHEDULERS, step_table

SHAPE = (1, 4, 3, 6, 5)
CONFIGS = {
    "shipped": SchedulerConfig(),
    "v-trailing": SchedulerConfig(prediction_type="v_prediction", timestep_spacing="trailing"),
    "sample-linspace": SchedulerConfig(prediction_type="sample", timestep_spacing="linspace"),
    "epsilon-scaled-linspace": SchedulerConfig(beta_schedule="scaled_linear", timestep_spacing="linspace"),
    "epsilon-cosine-trailing": SchedulerConfig(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing"),
    "v-zero-snr": SchedulerConfig(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
    ),
}
STEPS = (1, 2, 3, 10, 25, 50)
CASES = [(config, steps) for config in CONFIGS for steps in STEPS]
CASES += [("shipped", 999), ("v-trailing", 999)]
# leading spacing leaves no room for 999 steps to sigma 0; consistency models are distilled from 50.
TOO_MANY = {(name, "shipped") for name in ("dpmpp_2m", "deis", "unipc", "lcm")} | {("lcm", "v-trailing")}


def run(table: StepTable, latents: np.ndarray, outputs: np.ndarray, noises: np.ndarray) -> list[np.ndarray]:
    """The sample after each step; model outputs and noises are taken in turn."""
    state, samples = table.start(latents), []
    for step in range(len(table.timesteps)):
        noise = noises[step % len(noises)] if table.needs_noise else None
        state = sampler_step(state, outputs[step % len(outputs)], table.matrices[step], noise)
        samples.append(state[0])
    return samples


def diffusers_scheduler(name: str, config: SchedulerConfig, steps: int):
    """diffusers' scheduler with the options that ours corresponds to, its noise levels in float64."""
    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    kind, extra = {
        "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
        "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {}),
        "dpmpp_2m_karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
        "deis": (diffusers.DEISMultistepScheduler, {"solver_order": 3, "lower_order_final": False}),
        "unipc": (diffusers.UniPCMultistepScheduler, {}),
        "euler": (diffusers.EulerDiscreteScheduler, {}),
        "lcm": (diffusers.LCMScheduler, {}),
    }[name.removesuffix("_exponential")]
    options = dataclasses.asdict(config)
    spaced, name = name, name.removesuffix("_exponential")
    if name not in ("ddim", "lcm"):
        del options["set_alpha_to_one"]
    if name == "deis":
        del options["rescale_betas_zero_snr"]
    theirs = kind(**options, **extra)
    # The zero-SNR schedule differs by ulps of torch's square root, which its last levels make much of.
    exact = torch.tensor(alphas_cumprod(config)).double()
    if theirs.alphas_cumprod[-1] == 2**-24 or (name == "deis" and exact[-1] == 0):
        exact[-1] = 2**-24
    theirs.alphas_cumprod = exact
    if spaced == "deis_exponential":
        # Theirs rounds levels down to timesteps; ours takes the levels of whole timesteps, every one once.
        theirs.set_timesteps(steps)
        theirs.timesteps = torch.from_numpy(step_table(spaced, config, steps).timesteps.copy())
    elif name == "euler" and config.timestep_spacing == "linspace":
        theirs.set_timesteps(timesteps=np.linspace(0, 999, steps).round()[::-1].tolist())
    else:
        theirs.set_timesteps(steps)
    if hasattr(theirs, "sigmas"):
        table = np.sqrt((1 - exact) / exact).numpy()
        if name == "dpmpp_2m_karras":
            levels = theirs._convert_to_karras(table[::-1], steps)
        else:
            levels = table[theirs.timesteps.long().numpy()]
        # Their DEIS takes the logarithm of the last level.
        theirs.sigmas = torch.from_numpy(np.append(levels, 1e-8 if name == "deis" else 0.0))
    if name != "ddim":
        theirs.set_begin_index(0)
    return theirs


def run_theirs(theirs, latents, outputs, noises, monkeypatch) -> list[np.ndarray]:
    """The samples in variance-preserving space, as :func:`run` gives them."""
    torch = pytest.importorskip("torch")
    x, outputs, noises = (torch.from_numpy(array).double() for array in (latents, outputs, noises))
    # They would cast a float64 sample back to float32, and draw their own noise.
    monkeypatch.setattr(torch, "float32", torch.float64)
    drawn = iter(range(len(theirs.timesteps)))
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *_, **__: noises[next(drawn) % len(noises)]
    )
    euler = type(theirs).__name__ == "EulerDiscreteScheduler"
    scale = np.sqrt(theirs.sigmas**2 + 1) if euler else None
    samples = []
    if euler:
        x = x * scale[0]
    for step, timestep in enumerate(theirs.timesteps):
        if euler:
            theirs.scale_model_input(x, timestep)
        x = theirs.step(outputs[step % len(outputs)], timestep, x).prev_sample
        samples.append((x / scale[step + 1] if euler else x).numpy())
    return samples


def draws() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    latents, *rest = np.random.default_rng(0).standard_normal((15, *SHAPE)).astype(np.float32)
    return latents, np.stack(rest[:7]), np.stack(rest[7:])


@pytest.mark.slow
@pytest.mark.parametrize(("config", "steps"), CASES)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_against_diffusers(name, config, steps, relative_l2, monkeypatch):
    """Every step of a run, from random model outputs, to 1e-5 of diffusers' own code in float64."""
    if steps == 999 and (name, config) in TOO_MANY:
        with pytest.raises(ValueError, match="999 denoising steps"):
            step_table(name, CONFIGS[config], steps)
        return
    config = CONFIGS[config]
    table = step_table(name, config, steps)
    assert table.matrices.shape == (steps, table.states, table.states + 2)
    assert table.matrices.dtype == np.float32 and table.matrices.flags.c_contiguous
    theirs = diffusers_scheduler(name, config, steps)
    assert table.timesteps.dtype == np.int64 and table.timesteps.tolist() == theirs.timesteps.tolist()
    latents, outputs, noises = draws()
    got = run(table, latents, outputs, noises)
    expected = run_theirs(theirs, latents, outputs, noises, monkeypatch)
    if name.startswith("deis") and steps > 1:
        # Theirs is of third order there; ours is DDIM's step to the clean sample.
        got, expected = got[:-1], expected[:-1]
        last = step_table("ddim", config, 1, timesteps=table.timesteps[-1:].tolist())
        np.testing.assert_allclose(table.matrices[-1, 0, [0, 3]], last.matrices[0, 0, :2], rtol=1e-4)
        assert not table.matrices[-1, 0, 1:3].any()
    assert max(relative_l2(ours, reference) for ours, reference in zip(got, expected, strict=True)) < 1e-5


def gaussian_error(name: str, steps: int) -> float:
    """Relative error of where a perfect model of N(0, 1/4) data leads before the last step, against the exact flow.

    e(x, t) = spread x / (alpha^2 / 4 + spread^2), and the flow scales x by the ratio of standard deviations. The last
    step, to sigma 0, is of first order in every solver.
    """
    config = SchedulerConfig(timestep_spacing="trailing")
    table = step_table(name, config, steps)
    abar = alphas_cumprod(config).astype(np.float64)
    variance = abar / 4 + 1 - abar
    state = table.start(np.ones((1,), np.float32))
    for timestep, matrix in zip(table.timesteps[:-1], table.matrices[:-1], strict=True):
        prediction = np.sqrt(1 - abar[timestep]) * state[0] / variance[timestep]
        state = sampler_step(state, prediction.astype(np.float32), matrix)
    return abs(float(state[0, 0]) / np.sqrt(variance[table.timesteps[-1]] / variance[-1]) - 1)


def test_second_order_solvers_are_closer_to_the_exact_flow():
    """What they are for, without diffusers: DDIM's error falls with 1 / steps, theirs faster."""
    ddim = [gaussian_error("ddim", steps) for steps in (10, 40)]
    assert gaussian_error("euler", 10) == pytest.approx(ddim[0], rel=1e-4)
    for name in ("dpmpp_2m", "deis", "unipc"):
        ours = [gaussian_error(name, steps) for steps in (10, 40)]
        assert ours[0] < ddim[0] / 2 and ours[1] < ddim[1] / 4, name


@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_memory_starts_as_does_not_matter(name):
    table = step_table(name, SchedulerConfig(), 5)
    latents, outputs, noises = draws()
    expected = run(table, latents, outputs, noises)
    state = table.start(latents)
    state[1:] = 1000
    for step, matrix in enumerate(table.matrices):
        state = sampler_step(state, outputs[step], matrix, noises[step] if table.needs_noise else None)
        np.testing.assert_array_equal(state[0], expected[step])


def test_only_lcm_draws_noise_at_eta_zero():
    drawing = [name for name in SCHEDULERS if step_table(name, SchedulerConfig(), 4).needs_noise]
    assert drawing == ["lcm"]
    assert step_table("ddim", SchedulerConfig(), 4, eta=0.5).needs_noise
    assert not step_table("lcm", SchedulerConfig(), 1).needs_noise
    assert step_table("lcm", SchedulerConfig(), 4).matrices[-1, 0, -1] == 0, "the last step adds none"


def test_a_step_leaves_its_input_alone():
    table = step_table("unipc", SchedulerConfig(), 5)
    state = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
    before = state.copy()
    new = sampler_step(state, np.ones((2, 3), np.float32), table.matrices[2])
    np.testing.assert_array_equal(state, before)
    expected = np.tensordot(table.matrices[2][:, :-1], np.concatenate([state, np.ones((1, 2, 3), np.float32)]), axes=1)
    np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-5)


def test_bad_runs_are_refused():
    config = SchedulerConfig()
    with pytest.raises(
        ValueError, match="choose one of ddim, dpmpp_2m, dpmpp_2m_karras, deis, deis_exponential, unipc, euler, lcm"
    ):
        step_table("heun", config, 10)
    with pytest.raises(ValueError, match=r"eta=0.5 belongs to the ddim scheduler"):
        step_table("unipc", config, 10, eta=0.5)
    with pytest.raises(ValueError, match="from 1 to 50"):
        step_table("lcm", config, 51)
    for name in ("dpmpp_2m", "unipc"):
        with pytest.raises(ValueError, match="too many for a multistep scheduler"):
            step_table(name, config, 1000)
    for name in ("dpmpp_2m", "dpmpp_2m_karras", "euler"):
        with pytest.raises(ValueError, match="from 1 to 1000"):
            step_table(name, config, 0)
    zero_snr = SchedulerConfig(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    for name in SCHEDULERS:
        with pytest.raises(ValueError, match="Epsilon prediction cannot start at zero SNR"):
            step_table(name, zero_snr, 10)
    matrix = step_table("lcm", config, 4).matrices[0]
    x = np.zeros((1, 4), np.float32)
    with pytest.raises(ValueError, match="got none"):
        sampler_step(x[None], x, matrix)
