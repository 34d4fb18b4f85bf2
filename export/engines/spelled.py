"""The Attention operator as its three steps, with a float32 softmax between: fused as well, and more exact.

TensorRT for RTX fuses both forms into the same number of kernels. The operator's kernels accumulate the product of
queries and keys in float16; those of the three steps accumulate it in float32 (read from plans for compute capability
8.9). The form is taken while an engine is built, not in the bundle's graph: ONNX Runtime has kernels for the operator
alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto, NodeProto, TensorProto, helper

TYPES = {"HALF": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}
"""TensorRT's names of the types that attentions fuse in."""


def spell_out(model: bytes, attentions: Mapping[str, str]) -> tuple[bytes, int]:
    """A serialised graph whose attentions of these names are spelled out, and how many are.

    Args:
        model: without the weights, which stay where they are.
        attentions: name -> type of its queries, keys and values [batch, heads, tokens, size]: HALF or BF16. One with a
            mask, a scale of its own, a causal one or one with capped scores stays the operator.
    """
    parsed = ModelProto.FromString(model)
    nodes: list[NodeProto] = []
    count = 0
    for node in parsed.graph.node:
        if node.op_type == "Attention" and node.name in attentions and _is_plain(node):
            nodes += _steps(node, TYPES[attentions[node.name]])
            count += 1
        else:
            nodes.append(node)
    del parsed.graph.node[:]
    parsed.graph.node.extend(nodes)
    return parsed.SerializeToString(), count


def _is_plain(node: NodeProto) -> bool:
    """Queries, keys and values alone, the scale in the weights already."""
    values = {attribute.name: attribute for attribute in node.attribute}
    scaled = "scale" in values and values["scale"].f == 1.0
    causal = "is_causal" in values and values["is_causal"].i != 0
    capped = "softcap" in values and values["softcap"].f != 0.0
    return scaled and not causal and not capped and not any(node.input[3:]) and len(node.output) == 1


def _steps(node: NodeProto, dtype: int) -> list[NodeProto]:
    query, key, value = node.input[:3]

    def step(kind: str, inputs: list[str], part: str, **attributes: object) -> NodeProto:
        output = node.output[0] if part == "values" else f"{node.output[0]}_{part}"
        return helper.make_node(kind, inputs, [output], name=f"{node.name}_{part}", **attributes)

    turned = step("Transpose", [key], "turned", perm=[0, 1, 3, 2])
    scores = step("MatMul", [query, turned.output[0]], "scores")
    wide = step("Cast", [scores.output[0]], "wide", to=TensorProto.FLOAT)
    weights = step("Softmax", [wide.output[0]], "softmax", axis=-1)
    narrow = step("Cast", [weights.output[0]], "narrow", to=dtype)
    return [turned, scores, wide, weights, narrow, step("MatMul", [narrow.output[0], value], "values")]
