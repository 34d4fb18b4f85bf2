"""FLOPs of one node: twice the multiply-adds of matrix products, convolutions and attention, as torch's
``FlopCounterMode`` counts them; everything else counts nothing.
"""

from __future__ import annotations

from math import prod

from .graph_shapes import Graph, Node


def node_flops(graph: Graph, node: Node) -> int:
    """FLOPs of a node; padding is counted like any other value."""
    shapes = [graph.tensors[name].shape if name else () for name in (*node.inputs, *node.outputs)]
    if node.op in ("Conv", "ConvTranspose"):
        # Of a convolution every output takes, of a transposed one every input gives, one kernel's worth.
        positions = shapes[-1] if node.op == "Conv" else shapes[0]
        return 2 * prod(positions) * prod(shapes[1][1:])
    if node.op == "MatMul":
        return 2 * prod(shapes[-1]) * shapes[0][-1]
    if node.op == "Gemm":
        return 2 * prod(shapes[-1]) * shapes[0][0 if node.attributes.get("transA") else 1]
    if node.op == "Attention":
        query, key, value = shapes[:3]
        if len(query) == 4:
            batch, heads, length, head_size = query
            return 2 * batch * heads * length * key[2] * (head_size + value[3])
        # Joined heads: [batch, length, heads * head size]; grouped queries use every query head.
        groups = node.attributes["q_num_heads"] // node.attributes["kv_num_heads"]
        return 2 * query[0] * query[1] * key[1] * (query[2] + value[2] * groups)
    return 0
