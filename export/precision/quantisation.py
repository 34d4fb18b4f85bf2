"""Weights of products in 8 bits behind a DequantizeLinear each; activations stay as they are.

Symmetric, one scale per output channel (Jacob et al. 2018, arXiv:1712.05877): INT8 over [-127, 127], FP8 E4M3 over
[-448, 448]. Scales are float16 like the activations.
"""

from __future__ import annotations

from dataclasses import replace

from onnx import NodeProto, helper

from .graph import Graph, attribute
from .lowering import PRODUCTS

# Products at the border of the network (4 latent channels) hold few weights and every bit of the result.
_FEWEST_CHANNELS = 8


def quantise_weights(graph: Graph, activations: int, weights: int) -> int:
    """Put the weights of the products of a lowered graph behind DequantizeLinear nodes; returns how many.

    Args:
        graph: lowered to `activations`.
        activations, weights: ONNX element types.
    """
    nodes: list[NodeProto] = []
    dequantised: dict[tuple[str, int], str] = {}
    for node in graph.nodes:
        axis = _channel_axis(graph, node, activations)
        if axis is not None:
            name = node.input[1]
            if (name, axis) not in dequantised:
                dequantise = _dequantise(graph, name, axis, activations, weights)
                nodes.append(dequantise)
                dequantised[name, axis] = dequantise.output[0]
            node.input[1] = dequantised[name, axis]
        nodes.append(node)
    graph.nodes = nodes
    return len(dequantised)


def _channel_axis(graph: Graph, node: NodeProto, activations: int) -> int | None:
    """The axis of a product's weight that counts its output channels; None where it is not quantised."""
    if node.op_type not in PRODUCTS or node.input[1] not in graph.weights:
        return None
    weight = graph.weights[node.input[1]]
    if weight.elem_type != activations or min(weight.dims[:2]) < _FEWEST_CHANNELS:
        return None
    if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0)):
        return 0
    return len(weight.dims) - 1 if len(weight.dims) == 2 else None


def _dequantise(graph: Graph, name: str, axis: int, activations: int, weights: int) -> NodeProto:
    weight = graph.weights[name]
    quantised, scales, output = (graph.fresh(f"{name}_{part}") for part in ("quantised", "scales", "dequantised"))
    graph.weights[quantised] = replace(weight, elem_type=weights, channel_axis=axis)
    graph.weights[scales] = replace(weight, elem_type=activations, channel_axis=axis, scale_of=weights)
    graph.set_value(output, activations, weight.dims)
    return helper.make_node("DequantizeLinear", [quantised, scales], [output], name=f"dequantise_{name}", axis=axis)
