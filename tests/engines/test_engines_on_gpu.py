"""On a GPU: engines run, agree with ONNX Runtime, take their weights from the ONNX, and can be looked into."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consisti2v_rt.export.engines.bundle_engines import build_engines
from consisti2v_rt.export.engines.compare import compare_engines
from consisti2v_rt.runtime.bundle.bundle import Bundle, hash_files
from consisti2v_rt.runtime.bundle.manifest import Manifest
from consisti2v_rt.runtime.bundle.typed_json import MANIFEST_NAME
from consisti2v_rt.runtime.gpu.cards import engine_backend_for
from consisti2v_rt.runtime.gpu.device import probe
from consisti2v_rt.runtime.gpu.entry import load_engine
from consisti2v_rt.runtime.gpu.tensorrt_session import MODULES
from consisti2v_rt.runtime.session import OnnxCpuSession

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not probe().found, reason=probe().reason)]

DIMS = {"rows": 2}
BACKEND = engine_backend_for(probe().compute_capability)


@pytest.fixture(autouse=True)
def library() -> Any:
    return pytest.importorskip(MODULES[BACKEND])


def outputs(toy: Path, x: Any) -> tuple[Any, Any]:
    """What the engine and ONNX Runtime make of x in stage unet."""
    bundle = Bundle.open(toy)
    graph = bundle.manifest.stages["unet"]
    sessions = (
        load_engine(BACKEND, bundle, "unet", DIMS, None, "fp32"),
        OnnxCpuSession(bundle.file(graph.file), graph, DIMS),
    )
    for session in sessions:
        session.inputs["x"][...] = x
        session.run()
    return tuple(session.outputs["y"].copy() for session in sessions)  # type: ignore[return-value]


def test_every_profile_agrees_with_onnxruntime(toy_bundle: Path) -> None:
    pytest.importorskip("polygraphy")
    engines = build_engines(toy_bundle, "current", backend=BACKEND, precision="fp32", stages=["unet"])
    assert len(list(compare_engines(toy_bundle, engines))) == 3


def test_stripped_engines_take_weights_from_the_graph_also_changed_ones(
    toy_bundle: Path, relative_l2: Callable[[Any, Any], float]
) -> None:
    """No weights in the plan; other weights in the ONNX give other outputs, and nothing is built again."""
    (engine,) = build_engines(toy_bundle, "current", backend=BACKEND, precision="fp32", stages=["unet"], stripped=True)
    assert engine.stripped
    x = np.random.default_rng(0).standard_normal((2, 2, 8, 16), dtype=np.float32)
    first, exact = outputs(toy_bundle, x)
    assert relative_l2(first, exact) < 5e-3
    weights = toy_bundle / "unet" / "unet.onnx.data"
    weights.write_bytes((np.frombuffer(weights.read_bytes(), np.float32) * 3).tobytes())
    manifest = Manifest.from_json((toy_bundle / MANIFEST_NAME).read_text())
    changed = dataclasses.replace(manifest, files=hash_files(toy_bundle, manifest.files))
    (toy_bundle / MANIFEST_NAME).write_text(changed.to_json())
    second, exact = outputs(toy_bundle, x)
    assert relative_l2(second, exact) < 5e-3 < relative_l2(second, first)


def test_the_inspector_adds_the_layers_as_built(toy_bundle: Path, consisti2v: Callable[..., Any]) -> None:
    build_engines(toy_bundle, "current", backend=BACKEND, precision="fp32", stages=["unet"])
    metadata = json.loads(consisti2v("inspect", toy_bundle, "--engine", "unet", "--json").stdout)
    assert metadata[0]["inspector"]["Layers"]


@pytest.mark.skipif(BACKEND != "tensorrt-rtx", reason="TensorRT compiles when it builds")
def test_compiled_kernels_are_kept_beside_the_engine(toy_bundle: Path) -> None:
    build_engines(toy_bundle, "current", backend=BACKEND, precision="fp32", stages=["unet"])
    outputs(toy_bundle, np.zeros((2, 2, 8, 16), np.float32))
    bundle = Bundle.open(toy_bundle)
    session = load_engine(BACKEND, bundle, "unet", DIMS, None, "fp32")
    session.run()
    session.finished()  # type: ignore[attr-defined]
    assert list((toy_bundle / "engines").rglob("unet.*.jit"))
