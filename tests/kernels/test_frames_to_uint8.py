"""Pixels: the CUDA kernel gives the reference's bytes, all of them."""

from __future__ import annotations

import numpy as np
import pytest

from consisti2v_rt.kernels.vae import frames_to_uint8


def launch(machine, kind, decoded):
    """The pixels; the flag for values that are not finite is checked on the way."""
    frames, _, height, width = decoded.shape
    pixels = np.full((frames, height, width, 3), 77, np.uint8)
    sizes = {"frames": frames, "area": height * width}
    made, overflowed = machine.run(
        f"frames_to_uint8_{kind}",
        ("pixels", "overflowed"),
        decoded=decoded,
        pixels=pixels,
        overflowed=np.zeros(1, np.int32),
        **sizes,
    )
    assert overflowed[0] == (not np.isfinite(decoded.astype(np.float32)).all())
    (unchecked,) = machine.run(
        f"frames_to_uint8_{kind}", ("pixels",), decoded=decoded, pixels=pixels, overflowed=None, **sizes
    )
    np.testing.assert_array_equal(made, unchecked)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 7, 5), (3, 3, 16, 24), (0, 3, 8, 8), (2, 3, 0, 4)])
def test_random_frames(machine, normal, element_types, kind, shape):
    decoded = (normal(*shape) * np.float32(0.8)).astype(element_types[kind])
    np.testing.assert_array_equal(launch(machine, kind, decoded), frames_to_uint8(decoded))


def test_every_half_precision_number(machine, element_types):
    """All 65536 bit patterns but not a number; among them every step from one byte to the next."""
    every = np.arange(1 << 16, dtype=np.uint16)
    for kind in ("f16", "bf16"):
        decoded = every.view(element_types[kind])
        with np.errstate(invalid="ignore"):
            numbers = decoded[~np.isnan(decoded)]
        decoded = np.resize(numbers, (1, 3, 128, 200))
        np.testing.assert_array_equal(launch(machine, kind, decoded), frames_to_uint8(decoded))


def test_around_every_step_from_one_byte_to_the_next(machine):
    """The float32 neighbours on both sides of each threshold: truncation, and the same rounding before it."""
    thresholds = (np.arange(256, dtype=np.float32) / np.float32(255) - np.float32(0.5)) * np.float32(2)
    around = [thresholds]
    for direction in (-np.inf, np.inf):
        value = thresholds
        for _ in range(4):
            value = np.nextafter(value, np.float32(direction), dtype=np.float32)
            around.append(value)
    decoded = np.resize(np.concatenate(around), (1, 3, 16, 48)).astype(np.float32)
    made = launch(machine, "f32", decoded)
    np.testing.assert_array_equal(made, frames_to_uint8(decoded))
    assert len(np.unique(made)) == 256


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_noticed(machine, normal, element_types, kind, value):
    decoded = normal(3, 3, 7, 5).astype(element_types[kind])
    decoded[2, 1, 6, 4] = value
    launch(machine, kind, decoded)


def test_special_values(machine):
    special = np.array([np.inf, -np.inf, 3e38, -3e38, 1e-45, -1e-45, -0.0, np.nan], np.float32)
    made = launch(machine, "f32", np.resize(special, (1, 3, 1, 8)))
    assert made[0, 0, :, 0].tolist() == [255, 0, 255, 0, 127, 127, 127, 0]
