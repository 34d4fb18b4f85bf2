"""All stages of real bundles, built for cards that are not here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from consisti2v_rt import cli
from consisti2v_rt.export.engines import bundle_engines, kernels
from consisti2v_rt.export.engines.bundle_engines import build_engines
from consisti2v_rt.kernels.cuda.sources import SOURCES
from consisti2v_rt.runtime.bundle import Bundle
from consisti2v_rt.runtime.gpu.device import GpuStatus

pytest.importorskip("tensorrt_rtx")


@pytest.fixture(autouse=True)
def no_gpu_and_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_engines, "probe", lambda: GpuStatus(False, "no NVIDIA driver is installed"))
    monkeypatch.setattr(kernels, "SOURCES", {"noise": SOURCES["noise"]})


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


def test_the_demo_of_the_package(tmp_path: Path) -> None:
    """As it is in the package, in float32: a profile for each guidance batch where its batch is open."""
    demo = Path(cli.__file__).parent / "assets" / "demo_bundle"
    bundle = Path(shutil.copytree(demo, tmp_path / "demo"))
    engines = build_engines(bundle, "rtx4060", precision="fp32")
    manifest = Bundle.open(bundle).manifest
    assert [engine.stage for engine in engines] == list(manifest.stages)
    (unet,) = (engine for engine in engines if engine.stage == "unet")
    assert [profile.rows for profile in unet.profiles] == ([1, 2, 3] if manifest.model.rows is None else [])
    facts = json.loads((bundle / unet.facts).read_text())
    assert all("float" in entry["reason"] for entry in facts["attentions"]["decomposed"]), "none fuses in float32"
    assert facts["attentions"]["fused"] == []
