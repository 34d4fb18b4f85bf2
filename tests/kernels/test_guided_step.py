"""Guidance and sampler step: the reference against the loop's own functions, the CUDA kernel against the reference."""

from __future__ import annotations

import numpy as np
import pytest

from consisti2v_rt.kernels.ddim import SchedulerConfig
from consisti2v_rt.kernels.guidance import BRANCHES, combine_guidance
from consisti2v_rt.kernels.sampler import sampler_step
from consisti2v_rt.kernels.schedulers import SCHEDULERS, step_table
from consisti2v_rt.tests.kernels.references.guided_step import guided_prediction, guided_step

STEPS = 3
# The prompt's branch last: none; text 7.5; text 7.5 and image 2.
WEIGHTS = {"none": [1.0], "text": [-6.5, 7.5], "both": [-1.0, -5.5, 7.5]}


def tables(normal, states, branches, stride):
    """Random numbers for every step, each step its own; columns past `branches` must never be read."""
    weights = np.full((STEPS, stride), np.nan, np.float32)
    weights[:, :branches] = normal(STEPS, branches)
    return weights, normal(STEPS, states, states + 2)


def launch(machine, normal, kind, dtype, *, shape, states, branches, step, rescale=0.0, with_noise=False, **changed):
    """Run the moments, if any, and the step; returns what the kernel made and what the reference says."""
    videos, elements = shape[0], int(np.prod(shape[1:]))
    weights, matrices = tables(normal, states, branches, branches + 1)
    if not with_noise:
        matrices[..., -1] = 0  # the reference refuses weights of noise that is not there
    values = {
        "state": normal(states, *shape),
        "predictions": normal(branches, *shape).astype(dtype),
        "noise": normal(STEPS, *shape) if with_noise else None,
    } | changed
    state, predictions, noise = (values[name] for name in ("state", "predictions", "noise"))
    common = {
        "predictions": predictions,
        "weights": weights,
        "step": np.array([step], np.int32),
        "steps": STEPS,
        "branches": branches,
        "weight_stride": branches + 1,
        "videos": videos,
        "elements": elements,
    }
    moments = None
    if rescale:
        moments = np.full((videos, 32, 4), np.nan)
        (moments,) = machine.run(f"guidance_moments_{kind}", ("moments",), moments=moments, **common)
    made = machine.run(
        f"guided_step_{kind}",
        ("state", "rows"),
        state=state,
        matrices=matrices,
        noise=noise,
        moments=moments,
        rows=np.full((3, *shape), 77, dtype),
        states=states,
        copies=2,
        noise_stride=videos * elements,
        rescale=rescale,
        **common,
    )
    with np.errstate(all="ignore"):
        fresh = None if noise is None else noise[step]
        expected = guided_step(state, predictions, weights[step, :branches], matrices[step], fresh, rescale)
    return made, expected


@pytest.mark.parametrize("mode", BRANCHES)
def test_weights_say_what_the_published_formula_says(normal, mode):
    predictions = normal(BRANCHES[mode], 2, 4, 3, 5, 6)
    for rescale in (0.0, 0.7):
        published = combine_guidance(predictions, mode, 7.5, 2.0, rescale)
        weighted = guided_prediction(predictions, np.array(WEIGHTS[mode], np.float32), rescale)
        assert weighted.dtype == np.float32
        np.testing.assert_allclose(weighted, published, rtol=0, atol=1e-5)


def test_branches_of_weight_zero_are_not_read(normal):
    predictions = normal(2, 1, 3)
    predictions[0] = np.nan
    assert np.isfinite(guided_prediction(predictions, np.array([0, 1], np.float32))).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("with_noise", [False, True])
@pytest.mark.parametrize(("states", "branches", "shape"), [(1, 1, (1, 4, 2, 3, 5)), (2, 2, (3, 257)), (4, 3, (2, 1))])
def test_the_kernel_is_the_reference_to_the_last_bit(
    machine, normal, element_types, kind, with_noise, states, branches, shape
):
    dtype = element_types[kind]
    for step in range(STEPS):
        (state, rows), expected = launch(
            machine, normal, kind, dtype,
            shape=shape, states=states, branches=branches, step=step, with_noise=with_noise,
        )  # fmt: skip
        np.testing.assert_array_equal(state, expected)
        np.testing.assert_array_equal(rows[:2], np.stack([expected[0]] * 2).astype(dtype))
        assert (rows[2] == 77).all()  # a third copy was not asked for


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("shape", [(1, 4, 15, 8, 8), (3, 1001), (2, 2)])
@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_rescale(machine, normal, element_types, kind, shape, rescale):
    (state, _), expected = launch(
        machine, normal, kind, element_types[kind], shape=shape, states=2, branches=2, step=1, rescale=rescale
    )
    np.testing.assert_allclose(state, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_rescale_with_a_mean_far_above_the_spread(machine, normal, element_types):
    """Sums of squares would lose the spread in float32."""
    predictions = (normal(2, 2, 5000) + np.float32(3000)).astype(np.float32)
    (state, _), expected = launch(
        machine, normal, "f32", element_types["f32"],
        shape=(2, 5000), states=1, branches=2, step=0, rescale=0.5, predictions=predictions,
    )  # fmt: skip
    np.testing.assert_allclose(state, expected, rtol=2e-6)


@pytest.mark.filterwarnings("ignore:Degrees of freedom")
def test_rescale_of_one_value_is_not_a_number_like_the_reference(machine, normal, element_types):
    """A single element has no unbiased spread; a constant prediction has none to scale to."""
    for shape, predictions in (((1, 1), normal(2, 1, 1)), ((1, 300), np.zeros((2, 1, 300), np.float32))):
        (state, _), expected = launch(
            machine, normal, "f32", element_types["f32"],
            shape=shape, states=1, branches=2, step=0, rescale=0.5, predictions=predictions,
        )  # fmt: skip
        assert np.isnan(expected).all() and np.isnan(state).all()


@pytest.mark.parametrize("rescale", [0.0, 0.5])
def test_special_values_come_out_as_in_the_reference(machine, normal, element_types, rescale):
    special = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-45, -1e-40, 0.0, -0.0], np.float32)
    predictions = normal(2, 3, 40)
    predictions[0, 0, :9] = special
    predictions[1, 1, 20:29] = special  # the third video stays ordinary
    (state, rows), expected = launch(
        machine, normal, "f32", element_types["f32"],
        shape=(3, 40), states=1, branches=2, step=2, rescale=rescale, predictions=predictions,
    )  # fmt: skip
    np.testing.assert_allclose(state, expected, rtol=1e-6)
    np.testing.assert_array_equal(rows[0], state[0])
    assert np.isfinite(state[0, 2]).all() and not np.isfinite(state[0, 0]).all()


def test_rows_in_half_precision_overflow_to_infinity(machine, normal, element_types):
    state = np.full((1, 1, 8), 1e6, np.float32)
    (_, rows), expected = launch(
        machine, normal, "f16", element_types["f16"], shape=(1, 8), states=1, branches=1, step=0, state=state
    )
    assert np.abs(expected).min() > 65536  # the seed's weight of the state is not small
    assert np.isinf(rows[:2]).all()


@pytest.mark.parametrize("step", [-1, STEPS, 10**6])
def test_outside_the_tables_nothing_is_written(machine, normal, element_types, step):
    state, rows = normal(1, 1, 30), normal(2, 1, 30)
    weights, matrices = tables(normal, 1, 2, 2)
    common = {
        "predictions": normal(2, 1, 30), "weights": weights, "step": np.array([step], np.int32), "steps": STEPS,
        "branches": 2, "weight_stride": 2, "videos": 1, "elements": 30,
    }  # fmt: skip
    moments = np.full((1, 32, 4), 5.0)
    (after,) = machine.run("guidance_moments_f32", ("moments",), moments=moments, **common)
    np.testing.assert_array_equal(after, moments)
    made = machine.run(
        "guided_step_f32", ("state", "rows"), state=state, matrices=matrices, noise=None, moments=moments, rows=rows,
        states=1, copies=2, noise_stride=0, rescale=0.5, **common,
    )  # fmt: skip
    np.testing.assert_array_equal(made[0], state)
    np.testing.assert_array_equal(made[1], rows)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_no_videos_and_no_elements(machine, normal, element_types, shape):
    (state, _), expected = launch(
        machine, normal, "f32", element_types["f32"], shape=shape, states=2, branches=2, step=0, with_noise=True
    )
    assert state.shape == expected.shape and state.size == 0


def test_one_noise_buffer_serves_every_step(machine, normal):
    """A stride of 0: the caller refills it."""
    noise, state, weights, matrices = normal(1, 20), normal(1, 1, 20), *tables(normal, 1, 1, 1)
    predictions = normal(1, 1, 20)
    (made,) = machine.run(
        "guided_step_f32", ("state",), state=state, predictions=predictions, weights=weights, matrices=matrices,
        noise=noise, moments=None, rows=None, step=np.array([2], np.int32), steps=STEPS, branches=1, weight_stride=1,
        videos=1, elements=20, states=1, copies=0, noise_stride=0, rescale=0.0,
    )  # fmt: skip
    np.testing.assert_array_equal(made, guided_step(state, predictions, weights[2], matrices[2], noise))


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_first_rows(machine, normal, element_types, kind):
    dtype, latents = element_types[kind], normal(2, 301)
    (rows,) = machine.run(
        f"repeat_rows_{kind}", ("rows",), latents=latents, rows=np.zeros((3, 2, 301), dtype), copies=3, elements=602
    )
    np.testing.assert_array_equal(rows, np.stack([latents] * 3).astype(dtype))


def test_the_counter_walks_through_the_timesteps(machine):
    step, timestep = np.array([-1], np.int32), np.array([-5], np.int64)
    timesteps = np.array([981, 2**40, 1], np.int64)
    seen = []
    for _ in range(5):
        step, timestep = machine.run(
            "advance_step", ("step", "timestep"), step=step, timesteps=timesteps, timestep=timestep, steps=3
        )
        seen.append((int(step[0]), int(timestep[0])))
    assert seen == [(0, 981), (1, 2**40), (2, 1), (3, 1), (4, 1)]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_whole_run_of_every_sampler(machine, normal, name):
    """State in place over all steps, as the captured graph does it: nothing is carried over that should not be."""
    table = step_table(name, SchedulerConfig(), 6)
    weights = np.array([[-6.5, 7.5]] * 6, np.float32)
    state = table.start(normal(1, 4, 3, 5))
    state[1:] = np.nan  # memory of earlier steps is not read before it is written
    expected = table.start(state[0])
    step, timestep = np.array([0], np.int32), table.timesteps[:1].copy()
    noise = normal(6, *state.shape[1:]) if table.needs_noise else None
    for number in range(6):
        # A stand-in for a U-Net that depends on what it is given.
        predictions = np.stack([np.tanh(state[0]), np.tanh(state[0] + timestep / np.float32(1000))]).astype(np.float32)
        e = guided_prediction(predictions, weights[number])
        expected = sampler_step(expected, e, table.matrices[number], None if noise is None else noise[number])
        (state,) = machine.run(
            "guided_step_f32", ("state",), state=state, predictions=predictions, weights=weights,
            matrices=table.matrices, noise=noise, moments=None, rows=None, step=step, steps=6, branches=2,
            weight_stride=2, videos=1, elements=60, states=table.states, copies=0, noise_stride=60, rescale=0.0,
        )  # fmt: skip
        np.testing.assert_array_equal(state[0], expected[0])
        step, timestep = machine.run(
            "advance_step", ("step", "timestep"), step=step, timesteps=table.timesteps, timestep=timestep, steps=6
        )
    assert np.isfinite(state[0]).all()
