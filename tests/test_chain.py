"""Long videos: clips joined at their last frame, as published, or blended where they overlap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from consisti2v_rt import ImageToVideo, UserError
from consisti2v_rt.runtime.loop.denoise import join_clips

pytestmark = pytest.mark.slow

UNTRAINED = Path(__file__).parent / "data" / "untrained_bundle"
FAST = {"num_inference_steps": 1, "guidance_scale_txt": 1.0, "seed": 1}


def test_clips_fade_into_each_other() -> None:
    noise = np.random.default_rng(0)
    first, second, third = (noise.standard_normal((1, 2, 6, 3, 3), dtype=np.float32) for _ in range(3))
    joined = join_clips([first, second, third], 3)
    assert joined.shape[2] == 6 + 2 * 3
    assert np.array_equal(joined[:, :, :4], first[:, :, :4])
    assert np.allclose(joined[:, :, 4], (first[:, :, 4] + second[:, :, 1]) / 2)
    assert np.allclose(joined[:, :, 5], second[:, :, 2])
    assert np.array_equal(joined[:, :, 9:], third[:, :, 3:])
    published = join_clips([first, second])
    assert np.array_equal(published, np.concatenate([first, second[:, :, 1:]], axis=2))


def test_a_clip_begins_where_the_overlap_does() -> None:
    with ImageToVideo.from_bundle(UNTRAINED, device="cpu") as animate:
        image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        alone = animate(image, "a cat", **FAST)
        frames = alone.frames.shape[1]
        chained = animate(image, "a cat", autoregress_steps=3, chain="overlap:4", **FAST)
        assert chained.frames.shape[1] == frames + 2 * (frames - 4) == chained.settings.total_frames
        assert np.array_equal(chained.frames[:, : frames - 3], alone.frames[:, : frames - 3])
        # The last shared frame is the second clip's own: it differs from what the first clip had there.
        assert not np.array_equal(chained.frames[:, frames - 1], alone.frames[:, frames - 1])


@pytest.mark.parametrize("chain", ["first", "overlap", "overlap:1", "overlap:16", "overlap:-2", "overlap:²", 4])
def test_impossible_chains_are_refused(chain: object) -> None:
    animate = ImageToVideo.from_bundle(UNTRAINED, device="cpu")
    with pytest.raises(UserError, match="give last, or overlap:N"):
        animate.check("photo.jpg", "", chain=chain)
