"""The graph that engines are built from: the same numbers as the bundle's, in fewer kernels that move fewer bytes."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from consisti2v_rt.export.engines.libraries import find_engine_backend
from consisti2v_rt.export.engines.plan import PlanRequest, build_plan
from consisti2v_rt.export.engines.rewrites import rewrite
from consisti2v_rt.export.engines.shapes import EngineShapes
from consisti2v_rt.export.engines.targets import TARGETS
from consisti2v_rt.runtime.bundle.manifest import TensorSpec

CUT_DOWN = Path(__file__).parents[1] / "data" / "cut_down_unet.json"


def outputs(path: Path, model: bytes, feed: dict[str, Any]) -> list[Any]:
    """Of a graph written to `path`, beside the weights."""
    path.write_bytes(model)
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feed)


def random_inputs(model: bytes, rows: int) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    feed: dict[str, Any] = {}
    for value in onnx.load_model_from_string(model).graph.input:
        shape = [size.dim_value or rows for size in value.type.tensor_type.shape.dim]
        whole = value.type.tensor_type.elem_type == TensorProto.INT64
        feed[value.name] = np.full(shape, 5) if whole else generator.standard_normal(shape, np.float32)
    return feed


def kinds(model: bytes) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in onnx.load_model_from_string(model).graph.node)


@pytest.fixture
def unet(demo_bundle: Path, tmp_path: Path) -> Path:
    """The graph of the small U-Net, with its weights in a folder of its own."""
    for file in (demo_bundle / "unet").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / "unet.onnx"


def check_same_numbers(path: Path, rows: int) -> None:
    model = path.read_bytes()
    rewritten, joined = rewrite(model)
    feed, other = random_inputs(model, rows), path.with_name("rewritten.onnx")
    (expected,), (found,) = outputs(path, model, feed), outputs(other, rewritten, feed)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 5e-6
    # In every spatial transformer frame 0's own attention and that of the other frames became one.
    assert joined and kinds(model)["Attention"] - kinds(rewritten)["Attention"] == len(joined)
    onnx.checker.check_model(str(other), full_check=True)


@pytest.mark.slow
def test_the_same_numbers(unet):
    check_same_numbers(unet, rows=2)


@pytest.mark.rare
def test_the_same_numbers_whatever_the_batch(tmp_path):
    torch = pytest.importorskip("torch")
    from consisti2v_rt.export.onnx_graph import write_graph
    from consisti2v_rt.export.random_model import random_model
    from consisti2v_rt.export.stages import dynamic_sizes
    from consisti2v_rt.export.unet_stages import unet_axes, unet_export

    model = random_model("tiny").unet
    stage = unet_export(model, (8, 6), 2, torch.randn, unet_axes(model, False, None))
    write_graph(stage, tmp_path / "unet.onnx", dynamic_sizes(8, 8))
    for rows in (1, 3):
        check_same_numbers(tmp_path / "unet.onnx", rows)


def test_what_is_rewritten(unet):
    before, after = kinds(unet.read_bytes()), kinds(rewrite(unet.read_bytes())[0])
    # Two in each of the temporal residual blocks.
    norms = before["GroupNormalization"] - after["GroupNormalization"]
    assert 0 < norms == before["Conv"] - len(convolutions_of_images(unet))
    inferred = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(rewrite(unet.read_bytes())[0]))
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in inferred.graph.value_info}
    weights = {tensor.name for tensor in inferred.graph.initializer}
    products = [node for node in inferred.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    assert products and {ranks[node.output[0]] for node in products} == {2}


def convolutions_of_images(path: Path) -> list[onnx.NodeProto]:
    """All but those of kernel (3, 1)."""
    graph = onnx.load(str(path), load_external_data=False).graph
    sizes = {tensor.name: tuple(tensor.dims)[2:] for tensor in graph.initializer}
    return [node for node in graph.node if node.op_type == "Conv" and sizes.get(node.input[1]) != (3, 1)]


def test_without_shapes_nothing_is_rewritten(unet):
    graph = onnx.load(str(unet), load_external_data=False)
    del graph.graph.value_info[:]
    rewritten, joined = rewrite(graph.SerializeToString())
    assert not joined and kinds(rewritten) == kinds(unet.read_bytes())


@pytest.mark.slow
def test_an_attention_of_another_form_stays_as_it_is(unet):
    """With a mask, as no exported U-Net has it."""
    changed = onnx.load(str(unet), load_external_data=False)
    for node in changed.graph.node:
        if node.op_type == "Attention":
            node.input.append("mask")
    changed.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    rewritten, joined = rewrite(changed.SerializeToString())
    assert not joined and kinds(rewritten)["Attention"] == kinds(unet.read_bytes())["Attention"]


def plan_facts(library: Any, path: Path, inputs: Any, outputs: Any) -> dict[str, Any]:
    request = PlanRequest(
        "unet", path, EngineShapes(inputs, outputs, ()), find_engine_backend("tensorrt-rtx"), TARGETS["sm89"]
    )
    return build_plan(library, request, path.with_suffix(".plan"), lambda *at: None)


def feed_forward(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """y = x + x w + b of x [2, 8, 512, 320], and an attention, without which nothing is rewritten; inputs, outputs."""
    half = TensorProto.FLOAT16
    shapes = dict.fromkeys(("x", "y", "product", "biased", "sum"), (2, 8, 512, 320))
    shapes |= dict.fromkeys(("q", "attended"), (2, 8, 512, 40))
    generator = np.random.default_rng(0)
    weights = {"w": (320, 320), "b": (320,)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"], name="product"),
        helper.make_node("Add", ["product", "b"], ["biased"], name="bias"),
        helper.make_node("Add", ["x", "biased"], ["sum"], name="sum"),
        helper.make_node("Identity", ["sum"], ["y"], name="end"),
        helper.make_node("Attention", ["q", "q", "q"], ["attended"], name="attention", scale=1.0),
    ]
    tensors = [
        numpy_helper.from_array(generator.standard_normal(size).astype(np.float16), name)
        for name, size in weights.items()
    ]
    given, made, between = (
        [helper.make_tensor_value_info(name, half, shapes[name]) for name in names]
        for names in (("x", "q"), ("y", "attended"), ("product", "biased", "sum"))
    )
    graph = helper.make_graph(nodes, "g", given, made, tensors, value_info=between)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), str(path))
    inputs, outputs = (
        tuple(TensorSpec(name, "float16", shapes[name]) for name in names) for names in (("x", "q"), ("y", "attended"))
    )
    return inputs, outputs


def test_what_does_not_build_is_built_as_the_bundle_has_it(tmp_path, monkeypatch):
    library = pytest.importorskip("tensorrt_rtx")
    specs = feed_forward(tmp_path / "g.onnx")

    def broken(model: bytes) -> tuple[bytes, frozenset[str]]:
        graph = onnx.load_model_from_string(model)
        graph.graph.node[0].input[1] = "b"
        return graph.SerializeToString(), frozenset()

    monkeypatch.setattr("consisti2v_rt.export.engines.rewrites.rewrite", broken)
    metadata = plan_facts(library, tmp_path / "g.onnx", *specs)
    assert metadata["attentions"]["fused"] == ["attention"] and metadata["contents"]["kernels"]["attention"] == 1


@pytest.mark.rare
def test_the_plan_of_a_unet_of_real_widths(tmp_path):
    """Two levels of the published widths, one layer each, 256x256, two rows: the figures of docs/gpu.md."""
    library = pytest.importorskip("tensorrt_rtx")
    torch = pytest.importorskip("torch")
    from consisti2v_rt.export.onnx_graph import write_graph
    from consisti2v_rt.export.precision.conversion import convert
    from consisti2v_rt.export.precision.recipe import RECIPES
    from consisti2v_rt.export.random_model import open_gates
    from consisti2v_rt.export.random_options import random_unet_config
    from consisti2v_rt.export.unet import VideoUNet
    from consisti2v_rt.export.unet_stages import unet_export

    unet = VideoUNet(random_unet_config(str(CUT_DOWN)))
    open_gates(unet)
    stage = unet_export(unet.prepare_for_inference(), (32, 32), 2, torch.randn, {})
    write_graph(stage, tmp_path / "fp32.onnx", {})
    _, types = convert(tmp_path / "fp32.onnx", tmp_path / "fp16.onnx", RECIPES["fp16"], {})
    inputs = tuple(TensorSpec(name, types[name], tuple(tensor.shape)) for name, tensor in stage.inputs.items())
    outputs = (TensorSpec("noise_pred", types["noise_pred"], inputs[0].shape),)
    metadata = plan_facts(library, tmp_path / "fp16.onnx", inputs, outputs)
    contents, fused = metadata["contents"], len(metadata["attentions"]["fused"])
    assert not metadata["attentions"]["decomposed"] and contents["score_accumulation"] == {"fp32": fused}
    assert contents["kernels"]["attention"] == fused == 26
    assert sum(contents["kernels"].values()) <= 421
    assert sum(contents["bytes"].values()) <= 16.9e9
