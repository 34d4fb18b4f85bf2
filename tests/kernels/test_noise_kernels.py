"""Mixed noise and the counter-based generator: CUDA kernels against their references, these against what is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from consisti2v_rt.kernels.noise import base_noise_shape, mix_noise
from consisti2v_rt.tests.kernels.references.philox import FIRST_FRESH_NOISE, box_muller, philox4x32, philox_normal

pytestmark = pytest.mark.slow

ALL_ONES = 0xFFFFFFFF


def launch_mix(machine, kind, base, independent, alpha):
    videos, channels, frames, height, width = independent.shape
    extra = {"base_frames": base.shape[2]} if kind == "pyoco_progressive" else {}
    (mixed,) = machine.run(
        f"mix_noise_{kind}", ("independent",), base=base, independent=independent,
        kept=math.sqrt(alpha**2 / (1 + alpha**2)), fresh=math.sqrt(1 / (1 + alpha**2)),
        planes=videos * channels, frames=frames, area=height * width, **extra,
    )  # fmt: skip
    return mixed


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(
    "shape", [(2, 4, 16, 4, 6), (1, 3, 1, 5, 7), (1, 1, 9, 1, 1), (0, 4, 3, 2, 2), (1, 2, 3, 0, 2)]
)
@pytest.mark.parametrize("kind", ["pyoco_mixed", "pyoco_progressive"])
def test_mixed_noise(machine, normal, kind, shape, alpha):
    base, independent = normal(*base_noise_shape(kind, shape)), normal(*shape)
    mixed = launch_mix(machine, kind, base, independent, alpha)
    expected = mix_noise(kind, base, independent, alpha)
    if kind == "pyoco_mixed":
        np.testing.assert_array_equal(mixed, expected)
    else:  # a recursion here, a product with its matrix there
        np.testing.assert_allclose(mixed, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["pyoco_mixed", "pyoco_progressive"])
def test_special_values_stay_where_they_are(machine, normal, kind):
    base, independent = normal(*base_noise_shape(kind, (1, 1, 4, 1, 6))), normal(1, 1, 4, 1, 6)
    independent[0, 0, 2, 0, :4] = [np.inf, -np.inf, np.nan, 3e38]
    with np.errstate(all="ignore"):
        mixed = launch_mix(machine, kind, base, independent, 1.0)
    assert np.isfinite(mixed[..., :2, :, :]).all() and np.isfinite(mixed[..., 3:]).all()
    assert mixed[0, 0, 2, 0, :2].tolist() == [np.inf, -np.inf] and np.isnan(mixed[0, 0, 2, 0, 2])


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ALL_ONES] * 4, (ALL_ONES, ALL_ONES), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_published_answers(counter, key, expected):
    """Random123's kat_vectors for philox4x32-10."""
    assert philox4x32(np.array(counter, np.uint32), key).tolist() == expected


def test_the_extremes_of_the_uniform_numbers_are_finite():
    bits = np.array([0, 1, 2**31, ALL_ONES], np.uint32)
    radius, angle = (grid.ravel() for grid in np.meshgrid(bits, bits))
    first, second = box_muller(radius, angle)
    assert np.isfinite(first).all() and np.isfinite(second).all()
    assert np.hypot(first, second).max() == pytest.approx(math.sqrt(66 * math.log(2)), rel=1e-6)


def launch_philox(machine, seeds, draw, elements, step=None):
    normals = np.full((len(seeds), elements), 99, np.float32)
    (made,) = machine.run(
        "philox_normal", ("normals",), normals=normals, seeds=np.array(seeds, np.uint64), draw=draw,
        step=None if step is None else np.array([step], np.int32), videos=len(seeds), elements=elements,
    )  # fmt: skip
    return made


@pytest.mark.parametrize("elements", [0, 1, 2, 3, 4, 5, 1023, 4 * 257 + 1])
@pytest.mark.parametrize("seeds", [[], [0], [7, 2**64 - 1, 2**33 + 5]])
def test_the_kernel_draws_the_references_numbers(machine, seeds, elements):
    for draw in (0, 1, 1 << 32, 2**64 - 1):
        expected = philox_normal(seeds, draw, elements)
        np.testing.assert_allclose(launch_philox(machine, seeds, draw, elements), expected, rtol=1e-6, atol=1e-6)


def test_the_tail(machine):
    """A draw whose first number is 162 of 2^32: half of 2^-32, which keeps 0 out, shows far out in the tail."""
    draw = 13619867
    assert philox4x32(np.array([0, 0, draw, 0], np.uint32), (7, 0))[0] == 162
    expected = philox_normal([7], draw, 4)
    assert np.hypot(*expected[0, :2]) == pytest.approx(math.sqrt(-2 * math.log(162.5 / 2**32)), rel=1e-6)
    np.testing.assert_allclose(launch_philox(machine, [7], draw, 4), expected, rtol=1e-6, atol=1e-6)


def test_the_step_chooses_the_draw(machine):
    for step in (0, 1, 49):
        expected = philox_normal([5], FIRST_FRESH_NOISE + step, 100)
        np.testing.assert_allclose(launch_philox(machine, [5], FIRST_FRESH_NOISE, 100, step), expected, atol=1e-6)


def test_a_videos_noise_depends_on_its_own_seed_alone(machine):
    together, alone = launch_philox(machine, [3, 4], 1, 50), launch_philox(machine, [4], 1, 30)
    np.testing.assert_array_equal(together[1, :30], alone[0])


def test_the_numbers_are_standard_normal_and_independent():
    draws = np.concatenate([philox_normal(range(4), draw, 50_000) for draw in range(4)]).astype(np.float64)
    count = draws.size
    assert abs(draws.mean()) < 4 / math.sqrt(count)
    assert abs(draws.var() - 1) < 4 * math.sqrt(2 / count)
    assert abs((draws**3).mean()) < 4 * math.sqrt(15 / count)
    assert abs((draws**4).mean() - 3) < 4 * math.sqrt(96 / count)
    correlation = np.corrcoef(draws) - np.eye(16)
    assert np.abs(correlation).max() < 5 / math.sqrt(50_000)
    for lag in (1, 2, 3, 4):
        assert abs((draws[:, lag:] * draws[:, :-lag]).mean()) < 4 / math.sqrt(count)
