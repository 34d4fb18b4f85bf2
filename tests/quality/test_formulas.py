"""The measures against their definitions, on inputs whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from consisti2v_rt.benchmarks.quality.measures import (
    at_8_fps,
    frame_consistency,
    latent_relative_l2,
    mean_squared_errors,
    motion_smoothness,
    moves,
    psnr,
    ssim,
    temporal_flickering,
    top_magnitude,
)
from consisti2v_rt.runtime.media.read_video import Video

RNG = np.random.default_rng(5)


def random_frames(count: int, height: int = 16, width: int = 20) -> np.ndarray:
    return RNG.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_flickering_of_known_steps():
    """Levels 10, 13, 12: absolute steps 3 and 1, mean 2, also where uint8 would wrap."""
    frames = np.stack([np.full((4, 4, 3), level, np.uint8) for level in (10, 13, 12)])
    assert temporal_flickering(frames) == pytest.approx((255 - 2) / 255, abs=1e-7)
    assert temporal_flickering(np.stack([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)])) == 0


def test_consistency_takes_the_first_and_the_former_frame_and_no_negatives():
    """Angles 0, 60, 180 degrees: to the former .5 and cos 120 -> 0; to the first .5 and -1 -> 0."""
    angles = np.deg2rad([0, 60, 180])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert frame_consistency(features) == pytest.approx(((0.5 + 0.5) / 2 + 0) / 2, abs=1e-6)
    unlike_first = np.array([[1, 0], [0, 1], [0, 1]], dtype=np.float32)
    assert frame_consistency(unlike_first) == pytest.approx((0 + (1 + 0) / 2) / 2)


def test_top_magnitude_is_the_mean_of_the_largest_twentieth():
    flow = np.zeros((10, 20, 2), np.float32)
    flow.reshape(-1, 2)[:12, 0] = np.arange(1, 13)  # 200 vectors: the ten longest are 3..12
    assert top_magnitude(flow) == pytest.approx(np.mean(np.arange(3, 13)))
    assert top_magnitude(np.full((3, 3, 2), 3, np.float32)) == pytest.approx(math.hypot(3, 3))


@pytest.mark.parametrize(
    ("side", "fast", "expected"),
    [(256, 4, True), (256, 3, False), (512, 4, False), (128, 4, True)],
)
def test_dynamic_degree_threshold(side, fast, expected):
    """16 frames need round(4 * 16 / 16) = 4 pairs above 6 px at 256; twice that at 512."""
    assert moves([6.5] * fast + [5.9 * side / 256] * (15 - fast), side) is expected


def test_dynamic_degree_samples_8_frames_a_second():
    frames = random_frames(24)
    assert np.array_equal(at_8_fps(Video("a", frames, 24.0)), frames[::3])
    assert np.array_equal(at_8_fps(Video("a", frames, 8.0)), frames)
    assert len(at_8_fps(Video("a", frames[:2], 60.0))) == 2


def test_motion_smoothness_compares_odd_frames_with_interpolated_ones():
    levels = (0, 10, 40, 90, 80)  # middles of 0, 40 and 40, 80: 20 and 60; off by 10 and 30
    frames = np.stack([np.full((4, 4, 3), level, np.uint8) for level in levels])
    mean = lambda a, b: ((a.astype(int) + b) // 2).astype(np.uint8)  # noqa: E731
    assert motion_smoothness(frames, mean) == pytest.approx((255 - 20) / 255, abs=1e-7)
    # Of an even number of frames the last has no neighbour behind it.
    assert motion_smoothness(np.concatenate([frames, frames[:1]]), mean) == pytest.approx((255 - 20) / 255, abs=1e-7)


def test_psnr():
    original = random_frames(2).clip(0, 250).astype(np.uint8)
    changed = original.copy()
    changed[1] += 5
    errors = mean_squared_errors(changed, original)
    assert errors.tolist() == [0, 25]
    assert psnr(errors[0]) == math.inf
    assert psnr(errors[1]) == pytest.approx(10 * math.log10(255**2 / 25))


def test_ssim_equals_the_definition_written_out():
    a, b = random_frames(1, 13, 12), random_frames(1, 13, 12)
    b = ((a.astype(int) + b) // 2).astype(np.uint8)
    axis = np.arange(-5, 6)
    window = np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2, values = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for top in range(3):
        for left in range(2):
            for channel in range(3):
                x, y = (f[0, top : top + 11, left : left + 11, channel].astype(float) for f in (a, b))
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                cov = (window * (x - mx) * (y - my)).sum()
                values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert ssim(b, a)[0] == pytest.approx(np.mean(values), abs=1e-9)
    assert ssim(a, a)[0] == pytest.approx(1)


def test_latent_distance_is_per_frame():
    original = RNG.normal(size=(4, 3, 5, 6)).astype(np.float32)
    changed = original.copy()
    changed[:, 1] *= 1.25
    assert latent_relative_l2(changed, original) == pytest.approx([0, 0.25, 0], abs=1e-6)
