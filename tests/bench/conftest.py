"""Records made by hand, for what reads records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from consisti2v_rt.benchmarks.bench.record import Record, Row, Target

MACHINE = {
    "cpu": "Some CPU",
    "architecture": "x86_64",
    "physical_cores": 2,
    "logical_cores": 2,
    "usable_cores": 2,
    "instruction_sets": ["avx2"],
    "memory_bytes": 8 * 2**30,
    "system": "Linux 6",
    "gpus": [],
}
BUNDLE = {"name": "some_bundle", "sha256": "0" * 64, "bytes": 1, "frames": 16, "height": 128, "width": 128}
BUNDLES = {"scaling": {"models": {"frames 8": "8" * 64, "frames 16": "0" * 64}}}
SETTINGS = {
    "latency": {"image_sha256": "a" * 64, "prompt": "zoom in", "num_inference_steps": 50, "seed": 0},
    "side_by_side": {"seed": 0, "timestep": 501, "frame_stride": 3},
    "scaling": {"image_sha256": "a" * 64},
}
VERSIONS = {"python": "3.11", "consisti2v-rt": "0.1.0", "numpy": "2.4"}


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """A record of a kind with two rows, the given seconds being those of its main one."""

    def make(kind: str = "latency", seconds: Sequence[float] = (1.0, 1.1, 0.9, 1.0, 1.05)) -> Record:
        seconds = tuple(seconds)
        rows = {
            "latency": [Row("U-Net", seconds, 50, 2.0), Row("video", tuple(1.25 * s for s in seconds), 1, 4.0)],
            "side_by_side": [Row("forward", seconds, 1, 2.0)],
            "scaling": [Row("frames 8", tuple(s / 2 for s in seconds)), Row("frames 16", seconds)],
        }[kind]
        first = {"start": 0.1, "open": 0.2, "load": 0.3, "first_run": 0.4}
        target = Target("onnxruntime-cpu fp32", "onnxruntime-cpu", "fp32", "cpu", rows=rows, first=first)
        target.host_peak_bytes = 300 * 2**20
        if kind == "side_by_side":
            target.relative_l2, target.speed_up = 1e-6, 1.5
        missing = Target("tensorrt fp16", "tensorrt", "fp16", "cuda", "there is no GPU")
        what, created = "one thing", "2026-01-01T00:00:00Z"
        settings = {"rounds": len(seconds), "warmup": 1, "resident": True, "threads": None, **SETTINGS[kind]}
        bundle = {**BUNDLE, **BUNDLES.get(kind, {})}
        targets = [target, missing]
        if kind == "side_by_side":
            rows = [Row("forward", tuple(1.5 * s for s in seconds), 1, 3.0)]
            targets.append(Target("torch-eager fp32", "torch-eager", "fp32", "cpu", rows=rows, first=first))
        return Record(kind, what, created, MACHINE, VERSIONS, bundle, settings, targets, {"numpy": 10**7})

    return make


@pytest.fixture(scope="session")
def demo_bundle() -> Path:
    """In this folder: the demo bundle's stages with random weights. The demo model's own start was set by hand, with
    numbers that half precision does not hold.
    """
    return Path(__file__).parents[1] / "data" / "untrained_bundle"
