"""Every attention as an engine takes it: its scale on its operands, and the one operator where a fused kernel exists.

Scores are scaled before the first product, never after: unscaled scores overflow float16 (black frames; NVIDIA/TensorRT
issues 2667 and 3140). A query is a linear function of its projection's weights through reshapes, slices, rotations by
tables and the like, so that the factor can be in the weights, at no cost and without a rounding of its own.

TensorRT for RTX builds the Attention operator as one kernel or not at all. Head sizes without one (the VAE's 512) are
written as product, softmax and product, the softmax in float32. The operator keeps no `softmax_precision`, which the
parser rejects. Engines are built with the fused ones spelled out too, see :mod:`..engines.spelled`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ...errors import UserError
from .graph import FLOAT, Graph
from .recipe import has_fused_kernel
from .scaled_names import SCALED

# One data input, the first; the output is linear in it and the factor passes through.
_THROUGH = {"Reshape", "Transpose", "Slice", "Gather", "Expand", "Squeeze", "Unsqueeze", "Split", "Identity"}
_QUERY, _KEY, _MASK = 0, 1, 3
# What is added to the score of a key that must not be seen: exp() of it is 0, and float16 holds it with room to spare.
_UNSEEN = -1e4


@dataclass(frozen=True, eq=False)
class _Operand:
    """One operand of one attention, and everything its factor would pass through."""

    attention: ir.Node
    index: int
    factor: float
    edges: set[tuple[ir.Node, int]]
    """(node, index of its input) that the factor travels along, the attention's own first."""
    values: set[ir.Value]
    absorbing: list[tuple[ir.Node, int]]
    """Constants that take the factor up: (node, index of the input)."""


def fold_attention_scales(graph: Graph) -> tuple[int, int]:
    """Give every Attention node scale 1 and put its scale on queries and keys.

    Each gets the square root, so that both are of one magnitude; keys that are inputs of the graph (the text's) are
    left as they are, since other precisions share them, and their queries get the whole.

    Returns how many operands are scaled in weights, and how many by a multiplication of their own.
    """
    operands = list(_operands(graph))
    foldable = _consistent([operand for operand in operands if operand.absorbing])
    for operand in operands:
        if operand not in foldable:
            _scale_operand(graph, operand)
    scaled = {place: operand.factor for operand in foldable for place in operand.absorbing}
    for (node, index), factor in scaled.items():
        node.replace_input_with(index, _scaled_weight(graph, node.inputs[index], factor))
    for operand in operands:
        operand.attention.attributes["scale"] = ir.AttrFloat32("scale", 1.0)
    return len(foldable), len(operands) - len(foldable)


def head_size(graph: Graph, attention: ir.Node) -> int:
    """Channels of a head.

    Raises:
        UserError: the graph does not say, or the attention is not the plain 4-D one that the exporter writes.
    """
    shape, options = attention.inputs[_QUERY].shape, attention.attributes
    plain = not options.get_int("is_causal", 0) and not options.get_float("softcap", 0.0)
    if shape is None or len(shape) != 4 or not isinstance(shape[3], int) or not plain or len(attention.outputs) > 1:
        raise UserError(f"{graph.name}: attention {attention.name} is not one the export writes: export again.")
    return shape[3]


def _operands(graph: Graph) -> Iterator[_Operand]:
    for node in graph.body:
        if node.op_type == "Attention":
            scale = node.attributes.get_float("scale", 0.0) or 1 / math.sqrt(head_size(graph, node))
            shared_keys = node.inputs[_KEY].is_graph_input()
            yield _trace(node, _QUERY, scale if shared_keys else math.sqrt(scale))
            if not shared_keys:
                yield _trace(node, _KEY, math.sqrt(scale))


def _trace(attention: ir.Node, index: int, factor: float) -> _Operand:
    """Follow an operand back to the weights that make it; none are found where something is not linear."""
    found = _Operand(attention, index, factor, {(attention, index)}, set(), [])
    pending = [attention.inputs[index]]
    while pending:
        value = pending.pop()
        if value in found.values:
            continue
        found.values.add(value)
        places = _inputs_to_scale(value.producer())
        if not places:
            found.absorbing.clear()
            break
        for node, position in places:
            if node.inputs[position].is_initializer():
                found.absorbing.append((node, position))
            else:
                found.edges.add((node, position))
                pending.append(node.inputs[position])
    return found


def _inputs_to_scale(node: ir.Node | None) -> list[tuple[ir.Node, int]]:
    """The inputs that must be scaled for the node's output to be; empty where that is not possible."""
    if node is None:
        return []
    op, constant = node.op_type, [value is not None and value.is_initializer() for value in node.inputs]
    if op in _THROUGH and not constant[0]:
        return [(node, 0)]
    if op in {"Concat", "Add", "Sub"}:
        return [(node, index) for index in range(len(constant))]
    if op == "Mul" and constant[0] != constant[1]:
        return [(node, int(constant[0]))]
    if op == "MatMul" and constant[1]:
        return [(node, 1)]
    if op == "Gemm" and constant[1]:
        return [(node, index) for index in (1, 2) if index < len(constant)]
    return []


def _consistent(operands: list[_Operand]) -> set[_Operand]:
    """Those operands whose values are read by nobody who wants them otherwise."""
    alive = set(operands)
    while True:
        wanted: dict[tuple[ir.Node, int], set[float]] = {}
        for operand in alive:
            for edge in operand.edges:
                wanted.setdefault(edge, set()).add(operand.factor)
        dropped = {
            operand
            for operand in alive
            for value in operand.values
            if value.is_graph_output() or any(wanted.get(tuple(use)) != {operand.factor} for use in value.uses())
        }
        if not dropped:
            return alive
        alive -= dropped


def _scaled_weight(graph: Graph, weight: ir.Value, factor: float) -> ir.Value:
    """The constant times `factor`, under a name of its own: others may read the plain one."""
    return graph.add_weight(
        f"{weight.name}{SCALED}{factor:.9g}",
        weight.dtype,
        weight.shape.numpy(),
        lambda: graph.read(weight) * np.float32(factor),
    )


def _scale_operand(graph: Graph, operand: _Operand) -> None:
    """A multiplication just before the attention."""
    node, value = operand.attention, operand.attention.inputs[operand.index]
    factor = graph.add_weight(graph.fresh(f"{value.name}_scale"), FLOAT, (), lambda: np.array(operand.factor, "f4"))
    scaled = graph.insert(node, "Mul", [value, factor], f"{value.name}_scaled", FLOAT, value.shape)
    node.replace_input_with(operand.index, scaled)


def settle_attention_forms(graph: Graph) -> list[str]:
    """Decompose the attentions without a fused kernel, and turn masks of booleans into float biases.

    Scales must be 1 already (:func:`fold_attention_scales`). Returns the names of those that were decomposed.
    """
    decomposed = []
    for node in [node for node in graph.body if node.op_type == "Attention"]:
        mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
        if mask is not None and mask.is_initializer() and mask.dtype == ir.DataType.BOOL:
            node.replace_input_with(_MASK, _float_mask(graph, mask))
        if not has_fused_kernel(head_size(graph, node)):
            decomposed.append(node.name)
            _decompose(graph, node)
    return decomposed


def _float_mask(graph: Graph, mask: ir.Value) -> ir.Value:
    """A constant mask of booleans as what is added to the scores."""
    return graph.add_weight(
        f"{mask.name}_bias",
        FLOAT,
        mask.shape.numpy(),
        lambda: np.where(graph.read(mask), np.float32(0), np.float32(_UNSEEN)),
    )


def _decompose(graph: Graph, node: ir.Node) -> None:
    query, key, value, *rest = node.inputs
    batch, heads, rows, _ = query.shape
    length, size = key.shape[2], key.shape[3]
    name = node.outputs[0].name

    def add(op: str, inputs: list[ir.Value], part: str, shape: list[Any], **options: Any) -> ir.Value:
        return graph.insert(node, op, inputs, f"{name}_{part}", FLOAT, ir.Shape(shape), **options)

    turned = add("Transpose", [key], "keys", [batch, heads, size, length], perm=[0, 1, 3, 2])
    scores = add("MatMul", [query, turned], "scores", [batch, heads, rows, length])
    if rest and rest[0] is not None:
        scores = add("Add", [scores, rest[0]], "masked", [batch, heads, rows, length])
    weights = add("Softmax", [scores], "weights", [batch, heads, rows, length], axis=-1)
    # The node itself becomes the last product, so that its output keeps its name.
    node.op_type = "MatMul"
    node.attributes.clear()
    node.resize_inputs(2)
    node.replace_input_with(0, weights)
    node.replace_input_with(1, value)
