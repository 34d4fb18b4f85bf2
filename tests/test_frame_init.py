"""Low-pass filters and FrameInit against the published implementation."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from consisti2v_rt.kernels.ddim import SchedulerConfig, add_noise, alphas_cumprod
from consisti2v_rt.kernels.frame_init import (
    FILTER_KINDS,
    frame_init,
    frame_init_mask,
    half_spectrum_mask,
    low_pass_filter,
    mix_frequencies,
)

CASES = json.loads((Path(__file__).parent / "data" / "golden" / "frameinit" / "index.json").read_text())


@pytest.fixture(scope="module")
def tensors(golden):
    return load_file(golden / "frameinit" / "frameinit.safetensors")


def filter_arguments(case: dict) -> tuple:
    return (case["filter"], *case["shape"][-3:], case["d_s"], case["d_t"], case["n"] or 4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"])
def test_filter_equals_the_published_one(tensors, case):
    ours, theirs = low_pass_filter(*filter_arguments(case)), tensors[f"{case['key']}.lpf"]
    assert ours.dtype == np.float32
    if case["filter"] in ("box", "ideal"):
        np.testing.assert_array_equal(ours, theirs)
    else:
        np.testing.assert_array_max_ulp(ours, theirs, maxulp=1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"])
def test_frequency_mix_equals_the_published_one(tensors, relative_l2, case):
    key = case["key"]
    size = key.split(".")[0]
    mixed = mix_frequencies(tensors[f"{size}.x"], tensors[f"{size}.noise"], frame_init_mask(*filter_arguments(case)))
    assert mixed.dtype == np.float32
    assert relative_l2(mixed, tensors[f"{key}.out"]) < 1e-6


@pytest.mark.parametrize("loop", ["text_cfg", "text_cfg_frameinit_butterworth", "text_cfg_batch2"])
def test_frame_init_equals_the_published_pipeline(golden, golden_json, relative_l2, loop):
    tensors = load_file(golden / "pipeline" / f"{loop}.safetensors")
    record = golden_json("pipeline/index.json")[loop]
    noise = tensors["chunk0.noise"]
    still = tensors["chunk0.first_frame_input"][: len(noise)]
    abar = alphas_cumprod(SchedulerConfig())[record["kwargs"]["frameinit_noise_level"]]
    assert relative_l2(add_noise(still, noise, abar), tensors["chunk0.z_T"]) < 1e-6
    kind, order, d_s, d_t = record["filter"]
    out = frame_init(still, noise, abar, frame_init_mask(kind, *noise.shape[-3:], d_s, d_t, order or 4))
    assert relative_l2(out, tensors["chunk0.frameinit"]) < 1e-6


def test_a_still_frame_broadcasts_over_time():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((1, 4, 6, 8, 8), np.float32)
    frame = rng.standard_normal((1, 4, 1, 8, 8), np.float32)
    mask = frame_init_mask("gaussian", 6, 8, 8, 0.25, 0.25)
    repeated = np.repeat(frame, 6, axis=2)
    np.testing.assert_array_equal(frame_init(frame, noise, 0.01, mask), frame_init(repeated, noise, 0.01, mask))


def test_half_spectrum_mask_keeps_what_a_complex_transform_keeps():
    """Against a full complex FFT in float64, for a filter without any symmetry and odd sizes."""
    rng = np.random.default_rng(1)
    low_pass = rng.random((5, 6, 7), np.float32)
    video = rng.standard_normal((5, 6, 7))
    full = np.fft.ifftn(np.fft.ifftshift(low_pass) * np.fft.fftn(video)).real
    half = np.fft.irfftn(half_spectrum_mask(low_pass) * np.fft.rfftn(video), s=video.shape, axes=(0, 1, 2))
    np.testing.assert_allclose(half, full, atol=1e-6)


def test_mask_is_cached_and_read_only():
    mask = frame_init_mask("gaussian", 4, 8, 8, 0.25, 0.25)
    assert mask is frame_init_mask("gaussian", 4, 8, 8, 0.25, 0.25)
    with pytest.raises(ValueError, match="read-only"):
        mask[0, 0, 0] = 2


def test_a_zero_stop_frequency_leaves_the_noise():
    noise = np.random.default_rng(2).standard_normal((1, 4, 4, 8, 8), np.float32)
    for d_s, d_t in ((0, 0.25), (0.25, 0)):
        mask = frame_init_mask("gaussian", 4, 8, 8, d_s, d_t)
        np.testing.assert_array_equal(frame_init(noise * 3, noise, 0.5, mask), noise)


def test_tiny_stop_frequency_gives_a_filter_not_a_warning():
    with np.errstate(all="raise"):
        for kind in FILTER_KINDS:
            assert np.isfinite(low_pass_filter(kind, 5, 5, 5, 1e-150, 0.25)).all()


def test_an_unknown_filter_is_refused():
    with pytest.raises(ValueError, match="choose one of gaussian"):
        low_pass_filter("lanczos", 4, 8, 8, 0.25, 0.25)


def test_a_mask_of_another_size_is_refused():
    noise = np.zeros((1, 4, 4, 8, 8), np.float32)
    with pytest.raises(ValueError, match="does not fit latents of 4×8×8"):
        frame_init(noise, noise, 0.5, frame_init_mask("gaussian", 4, 8, 10, 0.25, 0.25))


def test_frame_init_is_small_beside_a_step():
    """A few ms at the shipped size; the bound leaves room for a busy machine."""
    noise = np.random.default_rng(3).standard_normal((1, 4, 16, 32, 32), np.float32)
    mask = frame_init_mask("gaussian", 16, 32, 32, 0.25, 0.25)
    durations = []
    for _ in range(5):
        begin = time.perf_counter()
        frame_init(noise, noise, 0.008, mask)
        durations.append(time.perf_counter() - begin)
    assert min(durations) < 0.05
