"""Engines whose U-Net multiplies in 8 bits, for a GPU that is not here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consisti2v_rt.export.engines import job, kernels
from consisti2v_rt.export.engines.bundle_engines import build_engines
from consisti2v_rt.export.precision.calibration import ActivationRange, Calibration
from consisti2v_rt.export.precision.calibration_set import CalibrationSet, calibration_set
from consisti2v_rt.export.precision.graph import Graph
from consisti2v_rt.export.precision.quantisation import observed_inputs
from consisti2v_rt.export.precision.recipe import VariantOptions
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.gpu.device import GpuStatus

pytestmark = pytest.mark.rare

pytest.importorskip("tensorrt_rtx")


@pytest.fixture(autouse=True)
def no_gpu_and_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "probe", lambda: GpuStatus(False, "no NVIDIA driver is installed"))
    monkeypatch.setattr(kernels, "CALL_KERNELS", ("noise",))


@pytest.fixture
def bundle(demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that may be built in; ranges are made up, since recording them has tests of its own."""

    def made_up(opened: Bundle, samples: CalibrationSet, on_sample: Any) -> Calibration:
        names = observed_inputs(Graph(opened.file("unet/unet.onnx")))
        ranges = {name: ActivationRange() for name in names}
        for found in ranges.values():
            found.add(6.0, np.linspace(-6, 6, 100, dtype=np.float32))
        return Calibration(samples.spec, ranges)

    monkeypatch.setattr("consisti2v_rt.export.precision.variant.calibrate", made_up)
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


@pytest.mark.parametrize(("precision", "target"), [("int8", "sm89"), ("fp8", "sm89")])
def test_weights_and_activations_in_eight_bits_build(bundle: Path, precision: str, target: str) -> None:
    options = VariantOptions(calibration=calibration_set("demo"), quick_check=True)
    (engine,) = build_engines(bundle, target, precision=precision, stages=["unet"], variant=options)
    manifest = Bundle.open(bundle).manifest
    calibration = manifest.variants[precision]["unet"].calibration
    assert calibration is not None and (calibration.name, calibration.samples) == ("demo", 6)
    metadata = json.loads((bundle / engine.metadata).read_text())
    kinds = metadata["layers"]["kinds"]
    losses = json.loads((bundle / "variants" / precision / "losses.json").read_text())["stages"]["unet"]
    assert kinds["quantize"] == losses["graph"]["quantised_activations"] > 50
    assert kinds["dequantize"] == kinds["quantize"] + losses["graph"]["quantised_weights"]
    half = manifest.files[manifest.stages["unet"].file + ".data"].bytes / 2
    assert metadata["weight_bytes"] < 0.8 * half, "weights are kept in 8 bits"


def test_the_command_says_what_it_cost(bundle: Path, consisti2v: Callable[..., Any]) -> None:
    done = consisti2v(
        *("build", bundle, "--target", "sm89", "--precision", "int8", "--stages", "unet"),
        *("--calibrate", "demo", "--quick-check"),
    )
    assert done.code == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "unet int8 graph, relative L2 to float32" in said and "activations in 8 bits" in said
