"""Pixels of decoded latents, and the VAE's posterior."""

from __future__ import annotations

import numpy as np
import pytest

from consisti2v_rt.kernels.vae import frames_to_uint8, posterior_sample


def test_values_are_clamped_and_truncated():
    # -3 and 3 clamp; 0 -> 127.5 -> 127; 0.9999 -> 254.99 -> 254 where rounding would give 255.
    values = np.array([-3, -1, 0, 0.9999, 1, 3], np.float32)
    decoded = np.broadcast_to(values, (1, 3, 1, 6))
    frames = frames_to_uint8(decoded)
    assert frames.dtype == np.uint8 and frames.shape == (1, 1, 6, 3) and frames.flags.c_contiguous
    assert frames[0, 0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


def test_channels_go_last_and_the_input_is_left_alone():
    decoded = np.random.default_rng(0).uniform(-1.2, 1.2, (2, 3, 4, 5)).astype(np.float32)
    before = decoded.copy()
    frames = frames_to_uint8(decoded)
    np.testing.assert_array_equal(decoded, before)
    expected = (np.clip(decoded / 2 + 0.5, 0, 1) * 255).astype(np.uint8)
    for channel in range(3):
        np.testing.assert_array_equal(frames[..., channel], expected[:, channel])


def test_half_precision_is_taken():
    decoded = np.linspace(-1, 1, 48, dtype=np.float16).reshape(1, 3, 4, 4)
    np.testing.assert_array_equal(frames_to_uint8(decoded), frames_to_uint8(decoded.astype(np.float32)))


def test_posterior_sample():
    mean = np.array([1.0, 1.0, 1.0], np.float32)
    logvar = np.array([0.0, 100.0, -100.0], np.float32)
    noise = np.array([2.0, 1.0, 1.0], np.float32)
    sample = posterior_sample(mean, logvar, noise, 0.5)
    assert sample.dtype == np.float32
    np.testing.assert_allclose(sample, [1.5, (1 + np.exp(10)) / 2, (1 + np.exp(-15)) / 2], rtol=1e-6)


def test_posterior_sample_equals_diffusers(relative_l2):
    torch = pytest.importorskip("torch")
    vae = pytest.importorskip("diffusers.models.autoencoders.vae")
    rng = np.random.default_rng(0)
    moments = rng.standard_normal((2, 8, 6, 6)).astype(np.float32) * 12
    theirs = vae.DiagonalGaussianDistribution(torch.from_numpy(moments))
    expected = theirs.sample(torch.Generator().manual_seed(0)) * 0.18215
    noise = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0)).numpy()
    ours = posterior_sample(moments[:, :4], moments[:, 4:], noise, 0.18215)
    assert relative_l2(ours, expected) < 1e-6
