"""What is read from a builder's log and a plan, and the form of the attentions that engines are built from."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from consisti2v_rt.export.engines.contents import kind_of, read_accumulation, read_log, read_product_accumulation
from consisti2v_rt.export.engines.spelled import spell_out


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
    def traits(*types: str) -> bytes:
        listed = ",\n\t".join(f"fmha::Ampere_hmma_{name}_traits" for name in types)
        return f"Kernel_traits_v2_flash_attention<\n\t{listed},\n\tfalse, // uses_bnsh_layout>".encode()

    plan = b"\0" + traits("fp16", "fp16") + b"\0" + traits("fp32", "fp16") + traits("fp32", "fp32")
    assert read_accumulation(plan) == ({"fp16": 1, "fp32": 2}, {"fp16": 2, "fp32": 1})
    assert read_accumulation(b"nothing") == ({}, {})


def test_the_accumulator_of_products():
    """Those of float32 operands, which store the same number, accumulate in float32."""
    tensor = b'tensor={ base="" dims={ 4 } name="%s" offset=0 strides={ 1 } type=%s }'
    entry = b'fully_connected={ name="a" output={"y" } input={"%s" "w" } ldd=0 accumulation_type=%d unbounded=false }'
    plan = [tensor % (b"narrow", b"half"), tensor % (b"wide", b"float")]
    plan += [entry % pair for pair in ((b"narrow", 0), (b"narrow", 2), (b"wide", 0), (b"narrow", 1))]
    assert read_product_accumulation(b"\n".join(plan)) == {"auto": 1, "fp32": 2, "type 1": 1}


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
