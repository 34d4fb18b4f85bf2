"""The demo model itself in half precision: its start is set by hand, so that nothing but a check says it holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from consisti2v_rt.export.precision import write_variant
from consisti2v_rt.runtime.pipeline import ImageToVideo

ASSETS = Path(__file__).parents[2] / "assets"


@pytest.fixture(scope="module")
def fp16_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed demo bundle with all stages in fp16; written only if every stage is within 5e-3."""
    folder = Path(shutil.copytree(ASSETS / "demo_bundle", tmp_path_factory.mktemp("demo") / "bundle"))
    write_variant(folder, "fp16")
    return folder


def test_every_stage_is_within_the_limit(fp16_demo):
    stages = json.loads((fp16_demo / "variants" / "fp16" / "losses.json").read_text())["stages"]
    assert set(stages) == {"text_encoder", "conditioning", "vae_encoder", "vae_decoder", "unet"}
    for stage, entry in stages.items():
        assert len(entry["losses"]) >= 3
        for loss in entry["losses"]:
            assert loss["relative_l2"] <= 5e-3, f"{stage}, seed {loss['seed']}"


def test_a_video_is_35_db_from_float32(fp16_demo):
    """The same noise; frame 0, which no denoising touches, is left out."""
    videos = {
        precision: ImageToVideo.from_bundle(fp16_demo, device="cpu", precision=precision)(
            ASSETS / "example.jpg", "pan right", num_inference_steps=4, guidance_scale_txt=1.0, seed=1
        ).frames[0, 1:]
        for precision in ("fp32", "fp16")
    }
    error = np.mean((videos["fp16"].astype(float) - videos["fp32"]) ** 2)
    assert error > 0, "the fp16 graphs were not run"
    assert 10 * np.log10(255**2 / error) >= 35
