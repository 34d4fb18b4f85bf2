"""FrameInit's kernels around NumPy's FFT, against the reference."""

from __future__ import annotations

import math

import numpy as np
import pytest

from consisti2v_rt.kernels.ddim import add_noise
from consisti2v_rt.kernels.frame_init import frame_init, frame_init_mask

ABAR = 0.0063


def launch_difference(machine, still, noise, abar=ABAR):
    videos, channels, frames, height, width = noise.shape
    (difference,) = machine.run(
        "frame_init_difference", ("difference",), static_latents=still, noise=noise, difference=np.zeros_like(noise),
        signal=np.sqrt(np.float32(abar)), spread=np.sqrt(np.float32(1) - np.float32(abar)), planes=videos * channels,
        static_frames=still.shape[2], frames=frames, area=height * width,
    )  # fmt: skip
    return difference


def launch_latents(machine, noise, correction, first_frame=True):
    videos, channels, frames, height, width = noise.shape
    written = ("first_frame", "latents") if first_frame else ("latents",)
    return machine.run(
        "initial_latents", written, noise=noise, correction=correction,
        first_frame=np.full((videos, channels, 1, height, width), 9, np.float32) if first_frame else None,
        latents=np.full((videos, channels, max(frames - 1, 0), height, width), 9, np.float32),
        scale=1 / max(frames * height * width, 1), planes=videos * channels, frames=frames, area=height * width,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gaussian", "box"])
@pytest.mark.parametrize("static_frames", ["one", "all"])
@pytest.mark.parametrize("shape", [(2, 4, 16, 8, 6), (1, 4, 5, 7, 9), (1, 1, 1, 1, 1), (3, 2, 2, 1, 3)])
def test_the_whole_of_frame_init(machine, normal, kind, static_frames, shape):
    """Odd sizes too, whose masks are off centre."""
    frames, height, width = shape[2:]
    still = normal(*shape[:2], 1 if static_frames == "one" else frames, height, width)
    noise, mask = normal(*shape), frame_init_mask(kind, frames, height, width, 0.25, 0.25)
    difference = launch_difference(machine, still, noise)
    np.testing.assert_array_equal(difference, add_noise(still, noise, ABAR) - noise)

    spectrum = np.fft.rfftn(difference, axes=(-3, -2, -1)).astype(np.complex64)
    (mixed,) = machine.run(
        "low_pass_mix", ("spectrum",), spectrum=spectrum, mask=mask, planes=shape[0] * shape[1], bins=mask.size
    )
    np.testing.assert_array_equal(mixed, spectrum * mask)

    # cuFFT's inverse is not normalised.
    volume = math.prod(shape[2:])
    correction = (np.fft.irfftn(mixed, s=shape[2:], axes=(-3, -2, -1)) * volume).astype(np.float32)
    first, latents = launch_latents(machine, noise, correction)
    expected = frame_init(still, noise, ABAR, mask)
    np.testing.assert_allclose(np.concatenate([first, latents], axis=2), expected, rtol=1e-5, atol=2e-6)


def test_without_frame_init_the_noise_is_split(machine, normal):
    noise = normal(2, 3, 4, 5, 6)
    first, latents = launch_latents(machine, noise, None)
    np.testing.assert_array_equal(first, noise[:, :, :1])
    np.testing.assert_array_equal(latents, noise[:, :, 1:])
    (alone,) = launch_latents(machine, noise, None, first_frame=False)
    np.testing.assert_array_equal(alone, latents)


@pytest.mark.parametrize("shape", [(0, 4, 3, 2, 2), (1, 2, 3, 0, 2)])
def test_empty_batches_and_sizes(machine, normal, shape):
    noise = normal(*shape)
    assert launch_difference(machine, noise, noise).size == 0
    first, latents = launch_latents(machine, noise, noise)
    assert first.size == latents.size == 0
    bins = shape[2] * shape[3] * (shape[4] // 2 + 1)
    (mixed,) = machine.run(
        "low_pass_mix", ("spectrum",), spectrum=np.zeros((shape[0] * shape[1], bins), np.complex64),
        mask=np.zeros(bins, np.float32), planes=shape[0] * shape[1], bins=bins,
    )  # fmt: skip
    assert mixed.size == 0


def test_special_values(machine):
    special = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-45, -0.0, 1.0], np.float32)
    still, noise = (np.resize(x, (1, 1, 8, 8, 1)) for x in (special, np.repeat(special, 8)))
    with np.errstate(all="ignore"):
        expected = add_noise(still, noise, ABAR) - noise
    np.testing.assert_array_equal(launch_difference(machine, still, noise), expected)
    assert np.isfinite(expected).any() and np.isnan(expected).any()
    spectrum = np.stack([special, special[::-1]], axis=-1).view(np.complex64)[:, 0]
    (mixed,) = machine.run(
        "low_pass_mix", ("spectrum",), spectrum=spectrum, mask=np.full(8, 2, np.float32), planes=1, bins=8
    )
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(mixed.real, special * np.float32(2))
        np.testing.assert_array_equal(mixed.imag, special[::-1] * np.float32(2))
