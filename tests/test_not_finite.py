"""Values that are not finite never become a video: half precision falls back to float32, anything else is refused."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from consisti2v_rt import ImageToVideo, UserError
from consisti2v_rt.runtime import backends
from consisti2v_rt.runtime.stage_failure import is_finite

pytestmark = pytest.mark.slow

FAST = {"num_inference_steps": 2, "seed": 3, "guidance_scale_txt": 1.0}


class Overflowing:
    """A session whose first output is not finite from its `after`-th run on."""

    def __init__(self, session: Any, after: int, value: float) -> None:
        self._session, self._after, self._value, self.runs = session, after, value, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self) -> None:
        self._session.run()
        self.runs += 1
        if self.runs > self._after:
            next(iter(self._session.outputs.values())).reshape(-1)[-1] = self._value


@pytest.fixture
def break_stage(monkeypatch):
    """Let a stage overflow in one precision; the sessions that were loaded, by stage and precision."""
    loaded: list[tuple[str, str]] = []

    def install(stage: str, precision: str, after: int = 0, value: float = np.nan) -> list[tuple[str, str]]:
        processor = next(backend for backend in backends.BACKENDS if backend.name == "onnxruntime-cpu")

        def load(bundle: Any, name: str, dims: Any, threads: int | None, wanted: str) -> Any:
            loaded.append((name, wanted))
            session = processor.load(bundle, name, dims, threads, wanted)
            return Overflowing(session, after, value) if (name, wanted) == (stage, precision) else session

        changed = backends.Backend(**{**processor.__dict__, "load": load})
        monkeypatch.setattr(backends, "BACKENDS", tuple(changed if b is processor else b for b in backends.BACKENDS))
        return loaded

    return install


@pytest.mark.parametrize("stage", ["text_encoder", "conditioning", "vae_encoder", "unet", "vae_decoder"])
def test_a_float32_stage_is_refused_by_name(break_stage, demo_bundle, photo, stage):
    break_stage(stage, "fp32", value=np.inf)
    animate = ImageToVideo.from_bundle(demo_bundle, verify=False, device="cpu")
    with pytest.raises(UserError, match=rf"stage {stage} produced values that are not finite.*inspect BUNDLE --verify"):
        animate(photo, "zoom in", **FAST)


def test_the_command_writes_no_file(break_stage, demo_bundle, photo, consisti2v, tmp_path):
    break_stage("vae_decoder", "fp32", after=7)
    outcome = consisti2v(
        *("generate", "-b", demo_bundle, "-i", photo, "-p", "zoom in", "-o", tmp_path / "a.mp4"),
        *("--device", "cpu", "--steps", "1"),
    )
    assert "stage vae_decoder" in outcome.refusal()
    assert not list(tmp_path.iterdir())


@pytest.mark.rare
@pytest.mark.parametrize(("stage", "after"), [("vae_decoder", 5), ("vae_encoder", 0)])
def test_a_half_precision_vae_falls_back_to_float32_and_says_so_once(
    break_stage, fp16_demo, photo, caplog, stage, after
):
    loaded = break_stage(stage, "fp16", after)
    animate = ImageToVideo.from_bundle(fp16_demo, verify=False, device="cpu", precision="fp16")
    shown: list[Any] = []
    with caplog.at_level(logging.WARNING, "consisti2v_rt"):
        result = animate(photo, "zoom in", on_frames=lambda *told: shown.append(told[2].copy()), **FAST)
        again = animate(photo, "zoom in", **FAST)
    notices = [record.message for record in caplog.records if "not finite" in record.message]
    assert len(notices) == 1 and f"stage {stage}" in notices[0] and "fp32 on ONNX Runtime CPU" in notices[0]
    assert (stage, "fp32") in loaded
    assert np.array_equal(np.concatenate(shown), result.frames[0])

    # From the start in float32, the second call shows what the first one's frames must be close to.
    assert np.abs(again.frames.astype(int) - result.frames).max() <= 2
    assert result.frames[0, after + 2].std() > 5, "no black frames"


@pytest.mark.rare
def test_a_half_precision_unet_is_refused_with_the_remedy(break_stage, fp16_demo, photo):
    break_stage("unet", "fp16")
    animate = ImageToVideo.from_bundle(fp16_demo, verify=False, device="cpu", precision="fp16")
    with pytest.raises(UserError, match=r"stage unet produced values that are not finite.*in fp16: choose --precision"):
        animate(photo, "zoom in", **FAST)


def test_an_absurd_guidance_scale_is_named(demo_bundle, photo):
    animate = ImageToVideo.from_bundle(demo_bundle, verify=False, device="cpu")
    options = {**FAST, "latents": np.full((1, 4, 16, 16, 16), 3e38, np.float32)}
    with pytest.raises(UserError, match=r"not finite|no longer finite"):
        animate(photo, "zoom in", **options)


@pytest.mark.parametrize(("bits", "finite"), [(0x3F80, True), (0x7F80, False), (0xFF80, False), (0x7FC0, False)])
def test_bfloat16_bits(bits, finite):
    assert is_finite(np.array([0x3F80, bits], np.uint16)) is finite
