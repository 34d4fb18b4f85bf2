"""torch's CPU random numbers, against stored draws of torch and against torch itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from consisti2v_rt import UserError
from consisti2v_rt.runtime.loop.random_streams import TorchGenerator

SEEDS = [0, 1, 42, 2**32 + 5, 2**63 - 1, 2**64 - 1, -1, -(2**63)]
# torch 2.13 on a processor with AVX2, whose roundings TorchGenerator follows: {seed: {"sizes": [...], "bits": hex}}.
STORED = json.loads((Path(__file__).parent / "data" / "torch_randn.json").read_text())


@pytest.mark.parametrize("seed", STORED)
def test_stored_draws_bit_for_bit(seed):
    """Consecutive draws: below 16, multiples of 16, incomplete last blocks, odd counts that leave a spare normal."""
    generator = TorchGenerator(int(seed))
    draws = np.concatenate([generator.randn(size) for size in STORED[seed]["sizes"]])
    expected = np.frombuffer(bytes.fromhex(STORED[seed]["bits"]), "<f4")
    np.testing.assert_array_equal(draws, expected)


@pytest.mark.parametrize("seed", [7, 42])
def test_golden_draws_bit_for_bit(golden, seed):
    tensors = load_file(golden / "frameinit" / "noise.safetensors")
    generator = TorchGenerator(seed)
    for name in ("base", "ind"):
        expected = tensors[f"mixed.alpha1.0.seed{seed}.{name}"]
        np.testing.assert_array_equal(generator.randn(expected.shape), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_draws_of_the_installed_torch(seed):
    """5e-6: on processors without AVX2 torch rounds otherwise."""
    torch = pytest.importorskip("torch")
    theirs, ours = torch.Generator("cpu").manual_seed(seed), TorchGenerator(seed)
    for size in [*range(41), 3, 100, 7, 1, 1600, 5, 20011, 15, (2, 4, 5, 6, 10), (0, 4), (3, 3)]:
        expected = torch.randn(size, generator=theirs).numpy()
        drawn = ours.randn(size)
        assert drawn.shape == expected.shape and drawn.dtype == np.float32
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=5e-6)


def test_distribution():
    draws = TorchGenerator(0).randn(1_000_000).astype(np.float64)
    assert abs(draws.mean()) < 4e-3 and abs(draws.std() - 1) < 3e-3
    assert abs(np.mean(draws**4) - 3) < 0.03


def test_only_the_lowest_32_bits_of_a_seed_count():
    np.testing.assert_array_equal(TorchGenerator(5).randn(20), TorchGenerator(2**32 + 5).randn(20))
    assert (TorchGenerator(5).randn(20) != TorchGenerator(6).randn(20)).any()


def test_numpy_integers_are_seeds():
    np.testing.assert_array_equal(TorchGenerator(np.int64(5)).randn(20), TorchGenerator(5).randn(20))


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.5, "42", None])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(UserError, match="whole number"):
        TorchGenerator(seed)
