"""The scale of every attention on its operands: in the weights that make queries and keys, else just before it.

Scores are scaled before the first product, never after: unscaled scores overflow float16 (black frames; NVIDIA/TensorRT
issues 2667 and 3140). A query is a linear function of its projection's weights through reshapes, slices, rotations by
tables and the like, so that the factor can be in the weights, at no cost and without a rounding of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ...errors import UserError
from .graph import Graph, attribute, set_attribute
from .weights import Weight

# One data input, the first; the output is linear in it and the factor passes through.
_THROUGH = {"Reshape", "Transpose", "Slice", "Gather", "Expand", "Squeeze", "Unsqueeze", "Split", "Identity"}
_QUERY, _KEY = 0, 1


@dataclass(frozen=True, eq=False)
class _Operand:
    """One operand of one attention, and everything its factor would pass through."""

    attention: NodeProto
    index: int
    factor: float
    edges: frozenset[tuple[int, int]]
    """(id of a node, index of its input) that the factor travels along, the attention's own first."""
    values: frozenset[str]
    absorbing: tuple[tuple[NodeProto, int], ...]
    """Constants that take the factor up: (node, index of the input)."""


@dataclass(frozen=True)
class ScaleReport:
    """How many operands were scaled where."""

    in_weights: int
    at_operand: int


def fold_attention_scales(graph: Graph) -> ScaleReport:
    """Give every Attention node scale 1 and put its scale on queries and keys.

    Each gets the square root, so that both are of one magnitude; keys that are inputs of the graph (the text's) are
    left as they are, since other precisions share them, and their queries get the whole.
    """
    operands = list(_operands(graph))
    foldable = _consistent(graph, [operand for operand in operands if operand.absorbing])
    scaled: dict[tuple[int, int], float] = {}
    for operand in operands:
        if operand in foldable:
            scaled |= {(id(node), index): operand.factor for node, index in operand.absorbing}
        else:
            _scale_operand(graph, operand)
    for node in graph.nodes:
        for index, name in enumerate(node.input):
            factor = scaled.get((id(node), index))
            if factor is not None:
                node.input[index] = _scaled_weight(graph, name, factor)
    for operand in operands:
        set_attribute(operand.attention, "scale", 1.0)
    return ScaleReport(len(foldable), len(operands) - len(foldable))


def head_size(graph: Graph, attention: NodeProto) -> int:
    """Channels of a head.

    Raises:
        UserError: the graph does not say, or the attention is not the plain 4-D one that the exporter writes.
    """
    shape = graph.shape(attention.input[_QUERY])
    plain = not attribute(attention, "is_causal", 0) and not attribute(attention, "softcap", 0.0)
    if shape is None or len(shape) != 4 or not isinstance(shape[-1], int) or not plain or len(attention.output) > 1:
        raise UserError(f"{graph.name}: attention {attention.name} is not one the export writes: export again.")
    return shape[-1]


def _operands(graph: Graph) -> Iterator[_Operand]:
    producers = graph.producers()
    for node in graph.nodes:
        if node.op_type != "Attention":
            continue
        scale = float(attribute(node, "scale", 0.0)) or 1 / math.sqrt(head_size(graph, node))
        shared_keys = node.input[_KEY] in graph.inputs
        yield _trace(graph, producers, node, _QUERY, scale if shared_keys else math.sqrt(scale))
        if not shared_keys:
            yield _trace(graph, producers, node, _KEY, math.sqrt(scale))


def _trace(graph: Graph, producers: dict[str, NodeProto], attention: NodeProto, index: int, factor: float) -> _Operand:
    """Follow an operand back to the weights that make it; none are found where something is not linear."""
    edges, values, absorbing = {(id(attention), index)}, set(), []
    pending = [attention.input[index]]
    while pending:
        value = pending.pop()
        if value in values:
            continue
        values.add(value)
        found = _inputs_to_scale(graph, producers.get(value))
        if not found:
            return _Operand(attention, index, factor, frozenset(edges), frozenset(values), ())
        for node, position in found:
            if node.input[position] in graph.weights:
                absorbing.append((node, position))
            else:
                edges.add((id(node), position))
                pending.append(node.input[position])
    return _Operand(attention, index, factor, frozenset(edges), frozenset(values), tuple(absorbing))


def _inputs_to_scale(graph: Graph, node: NodeProto | None) -> list[tuple[NodeProto, int]]:
    """The inputs that must be scaled for the node's output to be; empty where that is not possible."""
    if node is None:
        return []
    constant = [name in graph.weights for name in node.input]
    if node.op_type in _THROUGH and not constant[0]:
        return [(node, 0)]
    if node.op_type == "Concat":
        return [(node, index) for index in range(len(node.input))]
    if node.op_type in {"Add", "Sub"}:
        return [(node, 0), (node, 1)]
    if node.op_type == "Mul" and constant[0] != constant[1]:
        return [(node, int(constant[0]))]
    if node.op_type == "MatMul" and constant[1]:
        return [(node, 1)]
    if node.op_type == "Gemm" and constant[1]:
        return [(node, index) for index in (1, 2) if index < len(node.input)]
    return []


def _consistent(graph: Graph, operands: list[_Operand]) -> set[_Operand]:
    """Those operands whose values are read by nobody who wants them otherwise."""
    consumers = graph.consumers()
    alive = set(operands)
    while True:
        wanted: dict[tuple[int, int], set[float]] = {}
        for operand in alive:
            for edge in operand.edges:
                wanted.setdefault(edge, set()).add(operand.factor)
        dropped = {
            operand
            for operand in alive
            for value in operand.values
            if value in graph.outputs
            or any(wanted.get((id(node), index)) != {operand.factor} for node, index in consumers[value])
        }
        if not dropped:
            return alive
        alive -= dropped


def _scaled_weight(graph: Graph, name: str, factor: float) -> str:
    """The constant times `factor`, under its own name where others may read the plain one."""
    weight = graph.weights[name]
    scaled_name = f"{name}_scaled_{factor:.9g}"
    if scaled_name not in graph.weights:
        graph.weights[scaled_name] = Weight(weight.source, weight.elem_type, weight.factor * factor)
    return scaled_name


def _scale_operand(graph: Graph, operand: _Operand) -> None:
    """A multiplication just before the attention."""
    name = operand.attention.input[operand.index]
    output, constant = graph.fresh(f"{name}_scaled"), graph.fresh(f"{name}_scale")
    value = numpy_helper.from_array(np.array(operand.factor, dtype=np.float32), constant)
    graph.weights[constant] = Weight(value, TensorProto.FLOAT)
    node = helper.make_node("Mul", [name, constant], [output], name=f"scale_{output}")
    graph.set_value(output, TensorProto.FLOAT, graph.shape(name))
    graph.nodes.insert(next(i for i, n in enumerate(graph.nodes) if n is operand.attention), node)
    operand.attention.input[operand.index] = output
