"""``build --accumulate``: what float16 products add up in, as the library's own plans say it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from consisti2v_rt import UserError
from consisti2v_rt.export.engines import job, kernels
from consisti2v_rt.export.engines.accumulate import accumulate_in_float32
from consisti2v_rt.export.engines.bundle_engines import build_engines
from consisti2v_rt.export.engines.libraries import find_engine_backend
from consisti2v_rt.export.engines.plan import PlanRequest, build_plan
from consisti2v_rt.export.engines.shapes import EngineShapes
from consisti2v_rt.export.engines.targets import TARGETS
from consisti2v_rt.export.events import Events
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.bundle.engines import build_command
from consisti2v_rt.runtime.bundle.manifest import TensorSpec
from consisti2v_rt.runtime.gpu.device import GpuStatus

HALF = TensorProto.FLOAT16


@pytest.fixture(autouse=True)
def no_gpu_and_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "probe", lambda: GpuStatus(False, "no NVIDIA driver is installed"))
    monkeypatch.setattr(kernels, "CALL_KERNELS", ("noise",))


def products() -> onnx.ModelProto:
    """x [256, 64] by three weights, of which two read the same value, and a product with a bias; out [256, 64]."""
    generator = np.random.default_rng(0)
    weights = {name: generator.standard_normal((64, 64)).astype(np.float16) / 8 for name in ("w0", "w1", "w2")}
    weights["b2"] = generator.standard_normal(64).astype(np.float16)
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["q"], name="q"),
        helper.make_node("MatMul", ["x", "w1"], ["k"], name="k"),
        helper.make_node("Mul", ["q", "k"], ["qk"], name="qk"),
        helper.make_node("Gemm", ["qk", "w2", "b2"], ["y"], name="last", transB=1),
    ]
    values = [helper.make_tensor_value_info(name, HALF, [256, 64]) for name in "xy"]
    initializers = [numpy_helper.from_array(weight, name) for name, weight in weights.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def test_the_graph_between_casts_multiplies_the_same() -> None:
    model = products()
    wide = onnx.ModelProto.FromString(accumulate_in_float32(model.SerializeToString()))
    onnx.checker.check_model(wide, full_check=True)
    typed = onnx.shape_inference.infer_shapes(wide, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in typed.value_info}
    kinds = [(node.op_type, types[node.output[0]]) for node in typed.node if node.op_type in ("MatMul", "Gemm")]
    assert kinds == [("MatMul", TensorProto.FLOAT), ("Gemm", TensorProto.FLOAT)], "one product for both weights of x"
    x = np.random.default_rng(1).standard_normal((256, 64)).astype(np.float16)
    session = onnxruntime.InferenceSession(wide.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    exact = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in model.graph.initializer}
    wanted = (x @ exact["w0"]) * (x @ exact["w1"]) @ exact["w2"].T + exact["b2"]
    assert 0 < np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 1e-3


@pytest.mark.parametrize("accumulate", ["auto", "fp32"])
def test_a_plan_of_products(tmp_path: Path, accumulate: str) -> None:
    """Built by the library itself, so that what its numbers mean is held."""
    library = pytest.importorskip("tensorrt_rtx")
    onnx.save_model(products(), str(tmp_path / "g.onnx"))
    specs = [(TensorSpec(name, "float16", (256, 64)),) for name in "xy"]
    request = PlanRequest(
        "unet",
        tmp_path / "g.onnx",
        EngineShapes(*specs, ()),
        find_engine_backend("tensorrt-rtx"),
        TARGETS["sm89"],
        accumulate=accumulate,
    )
    metadata = build_plan(library, request, tmp_path / "g.plan", lambda *at: None)
    assert metadata["contents"]["product_accumulation"] == {accumulate: 2}


@pytest.mark.rare
def test_every_product_of_every_stage(built_tiny_bundle: Path, tmp_path: Path, consisti2v: Callable[..., Any]) -> None:
    """As many kernels as with the library's choice but for some casts, every attention fused, and another engine."""
    bundle = Path(shutil.copytree(built_tiny_bundle, tmp_path / "tiny"))

    def contents(stage: str) -> dict[str, dict[str, int]]:
        folder = bundle / "engines" / "sm89-tensorrt-rtx-fp16"
        made: dict[str, dict[str, int]] = json.loads((folder / f"{stage}.json").read_text())["contents"]
        return made

    manifest = Bundle.open(bundle).manifest
    free = {stage: contents(stage) for stage in manifest.stages}
    assert {engine.accumulate for engine in manifest.engines} == {"auto"}
    assert all("auto" in found["product_accumulation"] for found in free.values())
    built = build_engines(bundle, "sm89", precision="fp16", accumulate="fp32")
    assert {engine.accumulate for engine in built} == {"fp32"} and len(built) == len(manifest.stages)
    assert "--accumulate fp32" in build_command(built[0])
    for stage in manifest.stages:
        found = contents(stage)
        assert found["product_accumulation"].keys() == {"fp32"}
        assert sum(found["kernels"].values()) == pytest.approx(sum(free[stage]["kernels"].values()), rel=0.02)
        assert found["kernels"].get("attention") == free[stage]["kernels"].get("attention")
        assert "fp16" not in found["score_accumulation"] and "fp16" not in found["value_accumulation"]
    assert free["unet"]["value_accumulation"].keys() == {"fp16"}, "what the other choice gives"
    engines: list[Any] = []
    again = {"precision": "fp16", "stages": ["conditioning"], "events": Events(engine=lambda *of: engines.append(of))}
    build_engines(bundle, "sm89", accumulate="fp32", **again)  # type: ignore[arg-type]
    assert not engines, "what is there already stays"
    build_engines(bundle, "sm89", **again)  # type: ignore[arg-type]
    assert [engine.accumulate for engine, _ in engines] == ["auto"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"accumulate": "fp64"}, "--accumulate 'fp64' is unknown: choose auto or fp32"),
        ({"accumulate": "fp32", "precision": "bf16"}, "products of float16, and precision bf16"),
        ({"accumulate": "fp32", "precision": "fp16", "stripped": True}, "leave one out"),
    ],
)
def test_refused(toy_bundle: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build_engines(toy_bundle, "sm89", **options)
