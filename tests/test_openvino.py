"""OpenVINO as a second session on the processor, against ONNX Runtime's."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from consisti2v_rt.errors import CancelledError, UserError
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.bundle.manifest import STAGES
from consisti2v_rt.runtime.install import install_hint
from consisti2v_rt.runtime.openvino import backend as openvino_backend
from consisti2v_rt.runtime.openvino import session as openvino_session
from consisti2v_rt.runtime.openvino.session import OpenVinoSession
from consisti2v_rt.runtime.pipeline import ImageToVideo
from consisti2v_rt.runtime.session import OnnxCpuSession

pytest.importorskip("openvino")


def pair(folder: Path, stage: str, dims: dict[str, int]) -> tuple[OpenVinoSession, OnnxCpuSession]:
    """The stage in both engines, with the same random inputs."""
    bundle = Bundle.open(folder)
    spec = bundle.manifest.stages[stage]
    sessions = OpenVinoSession(bundle.file(spec.file), spec, dims), OnnxCpuSession(bundle.file(spec.file), spec, dims)
    fill(*sessions)
    return sessions


def fill(*sessions: OpenVinoSession | OnnxCpuSession) -> None:
    generator = np.random.default_rng(5)
    for name, array in sessions[0].inputs.items():
        if array.dtype == np.int64:
            values = generator.integers(1, 900, array.shape)
        else:
            values = generator.standard_normal(array.shape, np.float32)
        for session in sessions:
            session.inputs[name][...] = values


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_equals_onnx_runtime(tiny_bundle, relative_l2, stage):
    ours, exact = pair(tiny_bundle, stage, {"frames": 1})
    for session in (ours, exact):
        session.run()
    assert ours.outputs.keys() == exact.outputs.keys()
    for name, expected in exact.outputs.items():
        assert ours.outputs[name].dtype == expected.dtype
        assert relative_l2(ours.outputs[name], expected) < 2e-5


@pytest.mark.rare
def test_other_sizes_are_compiled_anew_and_equal(dynamic_bundle, relative_l2):
    small, large = ({"rows": rows, "latent_height": h, "latent_width": w} for rows, h, w in ((2, 8, 8), (1, 16, 8)))
    ours, exact = pair(dynamic_bundle, "unet", small)
    for dims in (small, large):
        for session in (ours, exact):
            session.allocate(dims)
        fill(ours, exact)
        for session in (ours, exact):
            session.run()
        assert ours.outputs["noise_pred"].shape[:1] == (dims["rows"],)
        assert relative_l2(ours.outputs["noise_pred"], exact.outputs["noise_pred"]) < 2e-5
    buffers = ours.inputs["sample"], ours.outputs["noise_pred"]
    ours.allocate(large | {"width": 64})
    assert buffers[0] is ours.inputs["sample"] and buffers[1] is ours.outputs["noise_pred"]


def test_bound_arrays_are_read_in_place(tiny_bundle):
    session, _ = pair(tiny_bundle, "vae_decoder", {"frames": 1})
    out = session.outputs["image"]
    session.run()
    first = out.copy()
    latents = np.full_like(session.inputs["latents"], 0.5)
    session.bind_input("latents", latents)
    session.run()
    second = out.copy()
    latents *= -1
    session.run()
    assert session.outputs["image"] is out
    assert not np.allclose(first, second) and not np.allclose(second, out)
    with pytest.raises(ValueError, match="contiguous"):
        session.bind_input("latents", latents[:, :, ::2])
    with pytest.raises(ValueError, match="in place of"):
        session.bind_input("latents", latents[:, :2].copy())


@pytest.mark.slow
def test_a_run_is_cancelled_and_runs_again(tiny_bundle):
    session, exact = pair(tiny_bundle, "unet", {})
    session.cancel()
    with pytest.raises(CancelledError):
        session.run()
    session.resume()
    stopper = threading.Timer(0.02, session.cancel)
    stopper.start()
    with pytest.raises(CancelledError):
        for _ in range(10_000):
            session.run()
    session.resume()
    session.run()
    exact.run()
    assert np.allclose(session.outputs["noise_pred"], exact.outputs["noise_pred"], atol=1e-4)


@pytest.mark.slow
def test_a_whole_video_equals_onnx_runtime(tiny_bundle, photo, relative_l2):
    options = {"num_inference_steps": 3, "seed": 7}
    latents = {}
    for device in ("cpu", "openvino"):
        animate = ImageToVideo.from_bundle(tiny_bundle, device=device)
        assert animate.backend.backend.device == device
        latents[device] = animate(photo, **options).latents
    assert relative_l2(latents["openvino"], latents["cpu"]) < 2e-5


@pytest.mark.slow
def test_a_signal_after_another_thread_closed_the_sessions(tiny_bundle):
    """On the alternate signal stack, as under ``python -X faulthandler``."""
    program = (
        "import gc, os, signal, sys, threading\n"
        "from consisti2v_rt.runtime.bundle.bundle import Bundle\n"
        "from consisti2v_rt.runtime.openvino.session import OpenVinoSession\n"
        "bundle = Bundle.open(sys.argv[1])\n"
        "stage = bundle.manifest.stages['text_encoder']\n"
        "models = [OpenVinoSession(bundle.file(stage.file), stage, {'rows': 1}) for _ in range(2)]\n"
        "def close():\n"
        "    models.pop(0)\n"
        "    gc.collect()\n"
        "for _ in range(2):\n"
        "    closing = threading.Thread(target=close)\n"
        "    closing.start()\n"
        "    closing.join()\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    command = [sys.executable, "-X", "faulthandler", "-c", program, str(tiny_bundle)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout) == (0, "interrupted\n"), ended.stderr


def test_auto_stays_with_onnx_runtime(tiny_bundle):
    assert ImageToVideo.from_bundle(tiny_bundle).backend.backend.name != "openvino"


# -- refusals --------------------------------------------------------------------------------------------------------


def test_a_precision_the_processor_lacks_is_refused(tiny_bundle, monkeypatch):
    monkeypatch.setattr(openvino_session, "native_precisions", lambda: ("fp32",))
    with pytest.raises(UserError, match=r"no bf16 instructions .* use --precision fp32\.$"):
        ImageToVideo.from_bundle(tiny_bundle, device="openvino", precision="bf16")


@pytest.mark.slow
def test_reduced_precision_is_asked_of_openvino_for_the_unet_alone(tiny_bundle, monkeypatch):
    """What a processor with bf16 gets; elsewhere OpenVINO takes the hint and computes in float32."""
    monkeypatch.setattr(openvino_session, "native_precisions", lambda: ("fp32", "bf16"))
    bundle = Bundle.open(tiny_bundle)
    assert openvino_backend.fits(bundle, "bf16").usable and not openvino_backend.fits(bundle, "fp16").usable
    hints = {
        stage: openvino_backend.load(bundle, stage, {"frames": 1}, 1, "bf16")._config["INFERENCE_PRECISION_HINT"]
        for stage in ("unet", "vae_decoder")
    }
    assert hints == {"unet": "bf16", "vae_decoder": "f32"}


def test_without_openvino_the_extra_is_named(tiny_bundle, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(UserError, match=re.escape(install_hint("openvino"))):
        ImageToVideo.from_bundle(tiny_bundle, device="openvino")


def test_another_graph_than_the_manifests_is_refused(tiny_bundle):
    bundle = Bundle.open(tiny_bundle)
    spec, other = (bundle.manifest.stages[name] for name in ("unet", "vae_decoder"))
    with pytest.raises(UserError, match="other inputs than"):
        OpenVinoSession(bundle.file(other.file), spec)
    wrong = replace(other, outputs=(replace(other.outputs[0], shape=(1, 3, 8, 8)),))
    with pytest.raises(UserError, match="other outputs than"):
        OpenVinoSession(bundle.file(other.file), wrong)


def test_a_damaged_graph_is_refused(tiny_bundle, tmp_path):
    damaged = tmp_path / "unet.onnx"
    damaged.write_bytes(b"\x08\x07not a graph")
    with pytest.raises(UserError, match=r"cannot load unet\.onnx"):
        OpenVinoSession(damaged, Bundle.open(tiny_bundle).manifest.stages["unet"])
