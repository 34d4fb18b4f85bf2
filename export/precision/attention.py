"""Every attention as an engine takes it: its scale on its operands, and the one operator where a fused kernel exists.

Scores are scaled before the first product, never after: unscaled scores overflow float16 (black frames; NVIDIA/TensorRT
issues 2667 and 3140). A query is a linear function of its projection's weights through reshapes, slices, rotations by
tables and the like, so that the factor can be in the weights, at no cost and without a rounding of its own.

TensorRT for RTX builds the Attention operator as one kernel or not at all. Head sizes without one (the VAE's 512) are
written as product, softmax and product, the softmax in float32. The operator keeps no `softmax_precision`: the parser
rejects it, and its kernels accumulate in float32 anyway.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ...errors import UserError
from .graph import Graph, attribute, set_attribute
from .recipe import has_fused_kernel
from .weights import Weight

# One data input, the first; the output is linear in it and the factor passes through.
_THROUGH = {"Reshape", "Transpose", "Slice", "Gather", "Expand", "Squeeze", "Unsqueeze", "Split", "Identity"}
_QUERY, _KEY = 0, 1
# What is added to the score of a key that must not be seen: exp() of it is 0, and float16 holds it with room to spare.
_UNSEEN = -1e4


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


def fold_attention_scales(graph: Graph) -> tuple[int, int]:
    """Give every Attention node scale 1 and put its scale on queries and keys.

    Each gets the square root, so that both are of one magnitude; keys that are inputs of the graph (the text's) are
    left as they are, since other precisions share them, and their queries get the whole.

    Returns:
        How many operands were scaled in weights, and how many by a multiplication.
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
    return len(foldable), len(operands) - len(foldable)


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
