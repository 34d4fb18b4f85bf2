"""Products in 8 bits: weights behind a DequantizeLinear each, and where a calibration gave scales their inputs between
a QuantizeLinear and a DequantizeLinear.

Symmetric (Jacob et al. 2018, arXiv:1712.05877): INT8 over [-127, 127], FP8 E4M3 over [-448, 448]. A weight has one
scale per output channel, an activation one. Scales are float16 like the activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from .graph import Graph, attribute
from .lowering import MOVEMENT, PRODUCTS
from .recipe import Recipe
from .weights import Weight

# Products at the border of the network (4 latent channels) hold few weights and every bit of the result.
_FEWEST_CHANNELS = 8
# Of an activation: a product of one row per image (the time embedding's) takes no time, and its input is no average
# over positions.
_FEWEST_DIMENSIONS = 3
_REARRANGED = MOVEMENT - {"Concat"}


def observed_inputs(graph: Graph) -> list[str]:
    """Activations to quantise: what the quantised products of a float32 graph read, each once.

    Products of two activations (scores and values of an attention) are none of them. Neither are those that read the
    residual stream itself (shortcuts over a concatenated skip, resampling): nothing has normalised it, its two halves
    have ranges of their own, and what is lost there stays in the stream (Li et al. 2023, arXiv:2302.04304, on the
    shortcuts of diffusion U-Nets).
    """
    producers = graph.producers()
    names = [node.input[0] for node in graph.nodes if _channel_axis(graph, node, TensorProto.FLOAT) is not None]
    return [name for name in dict.fromkeys(names) if _is_wide(graph, name) and not _is_residual(graph, producers, name)]


def quantise(graph: Graph, recipe: Recipe, scales: Mapping[str, float]) -> tuple[int, int]:
    """Put the products of a lowered graph into 8 bits.

    Args:
        graph: lowered to the type of the recipe's activations.
        recipe: nothing is done where its weights are not in 8 bits.
        scales: one for each activation to quantise, by its name in the float32 graph (:func:`observed_inputs`).

    Returns:
        How many weights, how many activations.
    """
    if recipe.weights is None:
        return 0, 0
    activations, eight_bits = recipe.activations, recipe.weights
    nodes: list[NodeProto] = []
    dequantised: dict[tuple[str, int], str] = {}
    narrowed: dict[str, str] = {}
    producers = graph.producers()
    for node in graph.nodes:
        axis = _channel_axis(graph, node, activations)
        if axis is not None:
            name, source = node.input[1], node.input[0]
            if (name, axis) not in dequantised:
                dequantise = _dequantise(graph, name, axis, activations, eight_bits)
                nodes.append(dequantise)
                dequantised[name, axis] = dequantise.output[0]
            node.input[1] = dequantised[name, axis]
            scale = scales.get(source, scales.get(_before_cast(producers, source)))
            if scale is not None and _is_wide(graph, source):
                if source not in narrowed:
                    pair = _narrow(graph, source, scale, activations, eight_bits)
                    nodes += pair
                    narrowed[source] = pair[-1].output[0]
                node.input[0] = narrowed[source]
        nodes.append(node)
    graph.nodes = nodes
    return len(dequantised), len(narrowed)


def _is_residual(graph: Graph, producers: Mapping[str, NodeProto], name: str) -> bool:
    """Whether a value is a concatenation or a sum of two activations, perhaps rearranged."""
    node = producers.get(name)
    while node is not None and node.op_type in _REARRANGED:
        node = producers.get(node.input[0])
    if node is None:
        return False
    sum_of_two = node.op_type == "Add" and not any(operand in graph.weights for operand in node.input)
    return node.op_type == "Concat" or sum_of_two


def _is_wide(graph: Graph, name: str) -> bool:
    shape = graph.shape(name)
    return shape is not None and len(shape) >= _FEWEST_DIMENSIONS


def _before_cast(producers: Mapping[str, NodeProto], name: str) -> str:
    """The name of a value before it was lowered."""
    node = producers.get(name)
    return node.input[0] if node is not None and node.op_type == "Cast" else name


def _narrow(graph: Graph, name: str, scale: float, activations: int, eight_bits: int) -> list[NodeProto]:
    """To 8 bits and back."""
    constant, narrow, back = (graph.fresh(f"{name}_{part}") for part in ("scale", "quantised", "dequantised"))
    graph.weights[constant] = Weight(numpy_helper.from_array(np.array(scale, np.float32), constant), activations)
    graph.set_value(narrow, eight_bits, graph.shape(name))
    graph.set_value(back, activations, graph.shape(name))
    return [
        helper.make_node(
            "QuantizeLinear", [name, constant], [narrow], name=f"quantise_{name}", output_dtype=eight_bits
        ),
        helper.make_node("DequantizeLinear", [narrow, constant], [back], name=f"dequantise_{name}"),
    ]


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
