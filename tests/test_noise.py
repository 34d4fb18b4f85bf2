"""Initial noise against the published implementation."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from consisti2v_rt.kernels.noise import NOISE_KINDS, base_noise_shape, mix_noise
from consisti2v_rt.runtime.loop.random_streams import TorchGenerator

SHAPE = (2, 4, 5, 6, 10)


@pytest.fixture(scope="module")
def tensors(golden):
    return load_file(golden / "frameinit" / "noise.safetensors")


@pytest.mark.parametrize("seed", [7, 42])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_mixed_noise_of_the_published_draws(tensors, relative_l2, alpha, seed):
    base, independent = (tensors[f"mixed.alpha{alpha}.seed{seed}.{name}"] for name in ("base", "ind"))
    out = mix_noise("pyoco_mixed", base, independent, alpha)
    assert out.dtype == np.float32
    assert relative_l2(out, tensors[f"pyoco_mixed.alpha{alpha}.seed{seed}.out"]) < 1e-6


@pytest.mark.parametrize("seed", [7, 42])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_a_seed_gives_the_published_noise(tensors, relative_l2, kind, alpha, seed):
    """The draws, their shapes and their order are those of the published code too."""
    generator = TorchGenerator(seed)
    base_shape = base_noise_shape(kind, SHAPE)
    base = None if base_shape is None else generator.randn(base_shape)
    out = mix_noise(kind, base, generator.randn(SHAPE), alpha)
    assert out.dtype == np.float32
    assert relative_l2(out, tensors[f"{kind}.alpha{alpha}.seed{seed}.out"]) < 1e-6


@pytest.mark.parametrize(("kind", "correlation"), [("pyoco_mixed", 0.8), ("pyoco_progressive", 0.8**1.5)])
def test_variance_and_correlation_between_frames(kind, correlation):
    """alpha 2, so r^2 = 0.8: that much between any two frames if mixed, r^3 three frames apart if progressive."""
    rng = np.random.default_rng(0)
    base, independent = rng.standard_normal((2, 1, 1, 4, 400, 400), np.float32)
    out = mix_noise(kind, base[:, :, :1], independent, 2.0)[0, 0].reshape(4, -1)
    np.testing.assert_allclose(out.std(axis=1), 1, atol=0.01)
    np.testing.assert_allclose(np.corrcoef(out)[0, 3], correlation, atol=0.01)


def test_bad_noise_is_refused():
    noise = np.zeros(SHAPE, np.float32)
    with pytest.raises(ValueError, match="choose one of pyoco_mixed"):
        mix_noise("brownian", noise, noise, 1.0)
