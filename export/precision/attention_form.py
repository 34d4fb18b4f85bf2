"""The form of every attention: the one operator where a fused kernel exists for it, else its three steps.

TensorRT for RTX builds the Attention operator as one kernel or not at all. In half precision it has kernels for head
sizes 16 to 256 in steps of 8; others (the VAE's 512) are written as product, softmax and product, the softmax in
float32. The operator keeps no `softmax_precision`: the parser rejects it, and its kernels accumulate in float32 anyway.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from .attention_scale import head_size
from .graph import Graph
from .weights import Weight

# What is added to the score of a key that must not be seen: exp() of it is 0, and float16 holds it with room to spare.
_UNSEEN = -1e4


def has_fused_kernel(size: int) -> bool:
    """Whether TensorRT for RTX has a half-precision kernel for this head size."""
    return 16 <= size <= 256 and size % 8 == 0


def settle_attention_forms(graph: Graph) -> list[str]:
    """Decompose the attentions without a fused kernel, and turn masks of booleans into float biases.

    Scales must be 1 already (:func:`fold_attention_scales`). Returns the names of those that were decomposed.
    """
    decomposed: list[str] = []
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        if node.op_type != "Attention":
            nodes.append(node)
            continue
        if len(node.input) > 3 and node.input[3]:
            node.input[3] = _float_mask(graph, node.input[3])
        if has_fused_kernel(head_size(graph, node)):
            nodes.append(node)
        else:
            nodes += _decompose(graph, node)
            decomposed.append(node.name)
    graph.nodes = nodes
    return decomposed


def _float_mask(graph: Graph, name: str) -> str:
    """A constant mask of booleans as what is added to the scores; any other mask is left."""
    weight = graph.weights.get(name)
    if weight is None or weight.source.data_type != TensorProto.BOOL:
        return name
    bias_name = f"{name}_bias"
    if bias_name not in graph.weights:
        seen = weight.array(graph.contents)
        bias = np.where(seen, np.float32(0), np.float32(_UNSEEN))
        graph.weights[bias_name] = Weight(numpy_helper.from_array(bias, bias_name), TensorProto.FLOAT)
    return bias_name


def _decompose(graph: Graph, node: NodeProto) -> list[NodeProto]:
    query, key, value = node.input[:3]
    output = node.output[0]
    q_shape, k_shape = graph.shape(query), graph.shape(key)
    assert q_shape is not None and k_shape is not None
    scores_shape = (*q_shape[:3], k_shape[2])

    def named(part: str, shape: tuple[int | str | None, ...]) -> str:
        name = graph.fresh(f"{output}_{part}")
        graph.set_value(name, TensorProto.FLOAT, shape)
        return name

    turned = named("keys", (*k_shape[:2], k_shape[3], k_shape[2]))
    scores = named("scores", scores_shape)
    nodes = [
        helper.make_node("Transpose", [key], [turned], name=f"{node.name}_keys", perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", [query, turned], [scores], name=f"{node.name}_scores"),
    ]
    if len(node.input) > 3 and node.input[3]:
        masked = named("masked", scores_shape)
        nodes.append(helper.make_node("Add", [scores, node.input[3]], [masked], name=f"{node.name}_mask"))
        scores = masked
    weights = named("weights", scores_shape)
    nodes.append(helper.make_node("Softmax", [scores], [weights], name=f"{node.name}_softmax", axis=-1))
    nodes.append(helper.make_node("MatMul", [weights, value], [output], name=f"{node.name}_values"))
    return nodes
