"""What is read from a builder's log and a plan, and the form of the attentions that engines are built from."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from consisti2v_rt.export.engines.contents import kind_of, read_accumulation, read_log, read_product_accumulation
from consisti2v_rt.export.engines.libraries import find_flavour
from consisti2v_rt.export.engines.plan import PlanRequest, build_plan
from consisti2v_rt.export.engines.shapes import EngineShapes
from consisti2v_rt.export.engines.spelled import spell_out
from consisti2v_rt.export.engines.targets import TARGETS
from consisti2v_rt.runtime.bundle.manifest import TensorSpec


def line(name: str, layer_type: str, inputs: str, outputs: str) -> str:
    def tensors(text: str) -> str:
        pairs = (entry.split(":") for entry in text.split(" "))
        shown = (
            f"{{ Name: t, Dimensions: [{sizes}], Strides: [1], Datatype: {kind}, Format: x }}" for sizes, kind in pairs
        )
        return f"[ {', '.join(shown)}]"

    return (
        f"Name: {name}, LayerType: {layer_type}, Inputs: {tensors(inputs)}, Outputs: {tensors(outputs)}, "
        "TacticName: some, StreamId: 0, Metadata: [ONNX Layer: node_Conc]"
    )


LOG = [
    "[MyelinGraph] Total Activation Memory: 5 bytes",
    line("_gemm_mha_v2_myl0_7", "kgen", "10,8,64:Half 10,8,64:Half 10,8,64:Half", "10,8,64:Half"),
    line("node_linear_18+node_linear_17_myl0_3", "gemm", "4,4:Half 4,4:Half :Float", "4,4:Half"),
    line("__myl_FcAddMul_myl0_4", "runtime_fusion", "4,4:Half", "4,4:Half"),
    line("__myl_MoveReshTranReshConc_myl0_5", "kgen", "4:Float", "4:Float"),
    line("signal_1", "signal", "4:Float", "4:Float"),
]


def test_kernels_and_bytes_by_kind():
    found = read_log(LOG)
    assert found.kernels == {"attention": 1, "product": 2, "concatenation": 1} and found.attentions == 1
    # A tensor without sizes is one number.
    assert found.bytes == {"attention": 4 * 10 * 8 * 64 * 2, "product": 3 * 32 + 4 + 2 * 32, "concatenation": 32}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("__myl_ReshTranReshAddCastMeanSubMulMeanAddSqrtDivMulCastMulAdd", "layer norm"),
        ("__myl_SiluGnor", "group norm"),
        ("__myl_TranReshCastMulMeanMeanMulSub", "group norm"),
        ("__myl_CastReluAddSqrtDivReshMulMulSubReshAddCastSilu", "group norm"),
        ("__myl_SlicSlicReshSlicReshMulMulSlicReshMulAddReshMulSubReshConc", "rotary"),
        ("__myl_AddAdd", "element-wise"),
        ("__myl_TranResh", "layout"),
    ],
)
def test_kinds(name, kind):
    assert kind_of(name, "kgen") == kind


def test_the_accumulator_of_the_scores():
    def traits(first: str) -> bytes:
        return f"Kernel_traits_v2_flash_attention<\n\tfmha::Ampere_hmma_{first}_traits,\n\tfmha::x>".encode()

    assert read_accumulation(b"\0" + traits("fp16") + b"\0" + traits("fp32") * 2) == {"fp16": 1, "fp32": 2}
    assert read_accumulation(b"nothing") == {}


def test_the_accumulator_of_products():
    entry = b'fully_connected={ name="a" ldd=0 accumulation_type=%d runtime_tactic=false }\0'
    assert read_product_accumulation(b"\0".join(entry % kind for kind in (0, 2, 0, 1))) == {
        "auto": 2,
        "fp32": 1,
        "type 1": 1,
    }


@pytest.mark.parametrize(("cast", "accumulator"), [(False, "auto"), (True, "fp32")])
def test_a_product_accumulates_in_float32_where_its_operands_are_cast(tmp_path, cast, accumulator):
    """Built by the library itself, so that what its numbers mean is held."""
    library = pytest.importorskip("tensorrt_rtx")
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    if cast:
        nodes = [helper.make_node("Cast", [name], [f"{name}_wide"], to=single) for name in "xw"]
        nodes.append(helper.make_node("MatMul", ["x_wide", "w_wide"], ["y_wide"]))
        nodes.append(helper.make_node("Cast", ["y_wide"], ["y"], to=half))
    values = [helper.make_tensor_value_info(name, half, shape) for name, shape in (("x", [256, 64]), ("y", [256, 128]))]
    weight = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float16)
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [onnx.numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save_model(model, str(tmp_path / "g.onnx"))
    specs = (TensorSpec("x", "float16", (256, 64)),), (TensorSpec("y", "float16", (256, 128)),)
    request = PlanRequest(
        "unet", tmp_path / "g.onnx", EngineShapes(*specs, ()), find_flavour("tensorrt-rtx"), TARGETS["sm89"]
    )
    facts = build_plan(library, request, tmp_path / "g.plan", lambda *at: None)
    assert facts["contents"]["product_accumulation"] == {accumulator: 1}


def attention(**attributes: object) -> bytes:
    values = {"scale": 1.0, "is_causal": 0, **attributes}
    names = ["query", "key", "value"]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [2, 3, 5, 8]) for name in names]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT16, [2, 3, 5, 8])
    node = helper.make_node("Attention", names, ["out"], name="attention", **values)
    graph = helper.make_graph([node], "graph", tensors, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10).SerializeToString()


def test_spelled_out_it_is_the_same_attention():
    model, count = spell_out(attention(), {"attention": "HALF"})
    assert count == 1 and "Attention" not in {node.op_type for node in onnx.load_from_string(model).graph.node}
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    generator = np.random.default_rng(3)
    query, key, value = (generator.standard_normal((2, 3, 5, 8)).astype(np.float16) for _ in range(3))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"query": query, "key": key, "value": value})
    scores = query.astype(np.float64) @ key.astype(np.float64).swapaxes(2, 3)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ value.astype(np.float64)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 2e-3


@pytest.mark.parametrize("attributes", [{"scale": 0.5}, {"is_causal": 1}, {"softcap": 2.0}])
def test_other_attentions_stay_the_operator(attributes):
    model, count = spell_out(attention(**attributes), {"attention": "HALF"})
    assert count == 0 and [node.op_type for node in onnx.load_from_string(model).graph.node] == ["Attention"]


def test_those_that_are_not_named_stay_the_operator():
    model, count = spell_out(attention(), {"another": "HALF"})
    assert count == 0 and [node.op_type for node in onnx.load_from_string(model).graph.node] == ["Attention"]
