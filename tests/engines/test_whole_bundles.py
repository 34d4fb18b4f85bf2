"""All stages of real bundles, built for cards that are not here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from consisti2v_rt import cli
from consisti2v_rt.export.engines import job, kernels
from consisti2v_rt.export.engines.bundle_engines import build_engines
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.gpu.device import GpuStatus

pytestmark = pytest.mark.rare

pytest.importorskip("tensorrt_rtx")


@pytest.fixture(autouse=True)
def no_gpu_and_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "probe", lambda: GpuStatus(False, "no NVIDIA driver is installed"))
    monkeypatch.setattr(kernels, "CALL_KERNELS", ("noise",))


def test_every_rtx_card_at_once(built_tiny_bundle: Path, tmp_path: Path) -> None:
    """The portable target, beside the engines for one card: same attentions fused."""
    bundle = Path(shutil.copytree(built_tiny_bundle, tmp_path / "tiny"))
    engines = build_engines(bundle, "rtx", precision="fp16")
    manifest = Bundle.open(bundle).manifest
    assert [engine.stage for engine in engines] == list(manifest.stages) and len(manifest.engines) == 10
    assert {engine.compute_capabilities for engine in engines} == {("8.0+",)}
    fused = [
        json.loads((bundle / f"engines/{target}-tensorrt-rtx-fp16/unet.json").read_text())["attentions"]["fused"]
        for target in ("sm89", "rtx")
    ]
    assert fused[0] == fused[1] != []


DEMO = Path(cli.__file__).parent / "assets" / "demo_bundle"


def test_the_demo_of_the_package_in_float32(tmp_path: Path) -> None:
    """All stages but the U-Net, whose float32 kernels take a minute a batch to choose."""
    bundle = Path(shutil.copytree(DEMO, tmp_path / "demo"))
    stages = ["text_encoder", "conditioning", "vae_encoder", "vae_decoder"]
    engines = build_engines(bundle, "rtx4060", precision="fp32", stages=stages)
    attentions = [json.loads((bundle / engine.metadata).read_text())["attentions"] for engine in engines]
    assert [engine.stage for engine in engines] == stages
    assert [entry["fused"] for entry in attentions] == [[]] * 4, "none fuses in float32"
    assert [len(entry["decomposed"]) for entry in attentions] == [2, 0, 1, 1]
    assert all("float" in each["reason"] for entry in attentions for each in entry["decomposed"])


def test_the_demo_of_the_package_in_half_precision(fp16_demo: Path, tmp_path: Path) -> None:
    """The trained weights, graphs within the limit: the attentions of every guidance batch fused."""
    bundle = Path(shutil.copytree(fp16_demo, tmp_path / "demo"))
    engines = build_engines(bundle, "sm89", precision="fp16")
    manifest = Bundle.open(bundle).manifest
    assert [engine.stage for engine in engines] == list(manifest.stages)
    metadata = {engine.stage: json.loads((bundle / engine.metadata).read_text()) for engine in engines}
    for engine in engines:
        assert engine.compute_capabilities == ("8.9",) and engine.precision == "fp16"
        graph = manifest.variants["fp16"][engine.stage]
        types = {tensor.name: tensor.dtype for tensor in (*graph.inputs, *graph.outputs)}
        assert {tensor.name: tensor.dtype for tensor in (*engine.inputs, *engine.outputs)} == types
        assert metadata[engine.stage]["plan_bytes"] == manifest.files[engine.file].bytes
    assert {stage: len(entry["attentions"]["fused"]) for stage, entry in metadata.items()} == {
        "text_encoder": 0,
        "conditioning": 0,
        "vae_encoder": 1,
        "vae_decoder": 1,
        "unet": 23,
    }
    assert all("head size" in entry["reason"] for entry in metadata["text_encoder"]["attentions"]["decomposed"])
    (unet,) = (engine for engine in engines if engine.stage == "unet")
    assert [profile.rows for profile in unet.profiles] == [1, 2, 3]
    assert [profile.inputs["sample"].optimum[0] for profile in unet.profiles] == [1, 2, 3]
    assert len(metadata["unet"]["activation_bytes"]) == 3
    dtypes = {tensor.name: tensor.dtype for tensor in unet.inputs}
    assert {dtypes[name] for name in dtypes if name.endswith((".key", ".value"))} == {"float16"}
    assert dtypes["sample"] == dtypes["first_frame_latents"] == "float32"
    decomposed = metadata["unet"]["attentions"]["decomposed"]
    assert len(decomposed) == 3 and all("one head of one row" in entry["reason"] for entry in decomposed)
    (portable,) = build_engines(bundle, "rtx", precision="fp16", stages=["unet"])
    assert portable.compute_capabilities == ("8.0+",)
    assert (portable.profiles, portable.inputs) == (unet.profiles, unet.inputs)
    everywhere = json.loads((bundle / portable.metadata).read_text())["attentions"]
    assert everywhere == metadata["unet"]["attentions"]


def test_the_decoder_takes_one_frame_or_four(built_tiny_bundle: Path) -> None:
    """A profile each, its attention fused in both, and more working memory for four."""
    (engine,) = (e for e in Bundle.open(built_tiny_bundle).manifest.engines if e.stage == "vae_decoder")
    assert [profile.inputs["latents"].optimum[0] for profile in engine.profiles] == [1, 4]
    assert engine.inputs[0].shape[0] == engine.outputs[0].shape[0] == "frames"
    metadata = json.loads((built_tiny_bundle / engine.metadata).read_text())
    one, four = metadata["activation_bytes"]
    assert one < four and len(metadata["attentions"]["fused"]) == 1
