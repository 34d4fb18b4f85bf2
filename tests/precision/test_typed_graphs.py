"""What stands in a half-precision graph: islands, border, attention; read from the written files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from consisti2v_rt.errors import UserError
from consisti2v_rt.export.precision.attention import fold_attention_scales, settle_attention_forms
from consisti2v_rt.export.precision.graph import Graph
from consisti2v_rt.export.precision.lowering import lower

FLOAT, FLOAT16, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16


class Typed:
    """A written graph and the type of every value, as it says itself (ONNX Runtime would not load a wrong one)."""

    def __init__(self, path: Path, low: int = FLOAT16) -> None:
        self.low = low
        self.model: ModelProto = onnx.load(str(path))
        graph = self.model.graph
        self.types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
        self.types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        self.weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer}

    def nodes(self, *kinds: str) -> list[NodeProto]:
        return [node for node in self.model.graph.node if node.op_type in kinds]

    def reads(self, node: NodeProto) -> set[int]:
        """Float types that a node reads."""
        return {self.types[name] for name in node.input if name} & {FLOAT, FLOAT16, BFLOAT16}

    def border(self) -> dict[str, int]:
        return {v.name: v.type.tensor_type.elem_type for v in (*self.model.graph.input, *self.model.graph.output)}


def attributes(node: NodeProto) -> dict[str, object]:
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


@pytest.fixture(scope="module", params=[FLOAT16, BFLOAT16], ids=["fp16", "bf16"])
def unet(request, demo_bundle, tmp_path_factory) -> Typed:
    graph = Graph(demo_bundle / "unet" / "unet.onnx")
    fold_attention_scales(graph)
    settle_attention_forms(graph)
    lower(graph, request.param)
    path = tmp_path_factory.mktemp("typed") / "unet.onnx"
    graph.write(path)
    return Typed(path, request.param)


def test_time_embedding_is_a_float32_island_of_two_perceptrons(unet):
    for node in unet.nodes("Cos", "Sin"):
        assert unet.reads(node) == {FLOAT}
    gemms = unet.nodes("Gemm")
    single = [node for node in gemms if unet.reads(node) == {FLOAT}]
    assert len(single) == 4 and all("_embedding.linear" in node.input[1] for node in single)
    projections = [node for node in gemms if node not in single]
    assert projections and all(unet.reads(node) == {unet.low} for node in projections)


def test_softmax_is_float32_and_its_products_are_not(unet):
    softmaxes = unet.nodes("Softmax")
    assert softmaxes, "the demo model has head size 8, for which there is no fused kernel"
    assert all(unet.reads(node) == {FLOAT} for node in softmaxes)
    assert all(unet.reads(node) == {unet.low} for node in unet.nodes("MatMul", "Conv", "Attention"))


def test_normalisations_compute_in_float32(unet):
    norms = unet.nodes("GroupNormalization", "LayerNormalization")
    assert norms and all(attributes(node)["stash_type"] == 1 for node in norms)
    assert all(unet.reads(node) == {unet.low} for node in norms)


def test_only_the_perceptrons_weigh_float32(unet):
    large = [name for name, array in unet.weights.items() if array.size > 256 and unet.types[name] == FLOAT]
    assert large and all("_embedding.linear" in name for name in large)


def test_border(unet):
    border = unet.border()
    single = {name for name, kind in border.items() if kind == FLOAT}
    assert single == {"sample", "first_frame_latents", "noise_pred"}
    assert {name for name, kind in border.items() if kind == TensorProto.INT64} == {"timestep", "frame_stride"}
    others = {name: kind for name, kind in border.items() if name.endswith((".key", ".value"))}
    assert others and set(others.values()) == {unet.low}


def test_attention_scale_is_in_the_weights(unet):
    kept = unet.nodes("Attention")
    assert kept and all(attributes(node)["scale"] == 1.0 for node in kept)
    assert all("softmax_precision" not in attributes(node) for node in kept)
    assert not [node for node in unet.nodes("Mul") if "_scaled" in node.output[0]]


def test_opset_is_asserted(demo_bundle, tmp_path):
    model = onnx.load(str(demo_bundle / "conditioning" / "conditioning.onnx"))
    model.opset_import[0].version = 18
    onnx.save_model(model, str(tmp_path / "old.onnx"))
    with pytest.raises(UserError, match="opset 18, not 23"):
        Graph(tmp_path / "old.onnx")


# -- attention scale, on graphs made for it --------------------------------------------------------------------------


def attention_model(path: Path, *, shared: bool = False, key_is_input: bool = False, curved: bool = False) -> None:
    """x [1, 6, 32] -> attention of two heads of 16; `shared`: queries are an output too; `curved`: not linear."""
    generator = np.random.default_rng(0)
    nodes, weights = [], []
    for part in "qkv":
        weights.append(numpy_helper.from_array(generator.standard_normal((32, 32), dtype=np.float32), f"w{part}"))
        weights.append(numpy_helper.from_array(generator.standard_normal(32, dtype=np.float32), f"b{part}"))
        nodes.append(helper.make_node("MatMul", ["x", f"w{part}"], [f"{part}0"]))
        nodes.append(helper.make_node("Add", [f"{part}0", f"b{part}"], [f"{part}1"]))
        source = f"{part}1"
        if curved and part == "q":
            nodes.append(helper.make_node("Sigmoid", [source], ["q_curved"]))
            source = "q_curved"
        nodes.append(helper.make_node("Reshape", [source, "heads"], [f"{part}2"]))
        nodes.append(helper.make_node("Transpose", [f"{part}2"], [part], perm=[0, 2, 1, 3]))
    weights.append(numpy_helper.from_array(np.array([1, 6, 2, 16]), "heads"))
    key = "text.key" if key_is_input else "k"
    nodes.append(helper.make_node("Attention", ["q", key, "v"], ["y"], name="attention"))
    if key_is_input:
        nodes = [node for node in nodes if node.output[0] not in ("k", "k0", "k1", "k2")]
    heads = [1, 2, 6, 16]
    inputs = [helper.make_tensor_value_info("x", FLOAT, [1, 6, 32])]
    inputs += [helper.make_tensor_value_info("text.key", FLOAT, heads)] if key_is_input else []
    outputs = [helper.make_tensor_value_info("y", FLOAT, heads)]
    outputs += [helper.make_tensor_value_info("q", FLOAT, heads)] if shared else []
    graph = helper.make_graph(nodes, "attention", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save_model(onnx.shape_inference.infer_shapes(model), str(path))


def run(path: Path) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(1)
    feeds = {i.name: generator.standard_normal(i.shape, dtype=np.float32) for i in session.get_inputs()}
    return session.run(None, feeds)


@pytest.mark.parametrize(
    ("case", "in_weights", "at_operand"),
    [({}, 2, 0), ({"key_is_input": True}, 1, 0), ({"shared": True}, 1, 1), ({"curved": True}, 1, 1)],
    ids=["both folded", "keys of the text", "queries read elsewhere", "queries not linear"],
)
def test_scaling_changes_no_number(tmp_path, relative_l2, case, in_weights, at_operand):
    attention_model(tmp_path / "plain.onnx", **case)
    graph = Graph(tmp_path / "plain.onnx")
    assert fold_attention_scales(graph) == (in_weights, at_operand)
    (tmp_path / "scaled").mkdir()
    graph.write(tmp_path / "scaled" / "scaled.onnx")
    for got, expected in zip(run(tmp_path / "scaled" / "scaled.onnx"), run(tmp_path / "plain.onnx"), strict=True):
        assert relative_l2(got, expected) < 1e-6
    (node,) = Typed(tmp_path / "scaled" / "scaled.onnx").nodes("Attention")
    assert attributes(node)["scale"] == 1.0


def test_unknown_operator_is_refused(tmp_path):
    attention_model(tmp_path / "plain.onnx")
    model = onnx.load(str(tmp_path / "plain.onnx"))
    model.graph.node.append(helper.make_node("Softplus", ["y"], ["z"]))
    onnx.save_model(model, str(tmp_path / "plain.onnx"))
    with pytest.raises(UserError, match="operator Softplus has no precision rule"):
        lower(Graph(tmp_path / "plain.onnx"), FLOAT16)
