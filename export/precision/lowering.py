"""Strong typing: every value of a float32 graph gets its type, and casts stand where two meet.

Products, normalisations, attention and what lies between them run in the low type. Islands stay in float32:
- the softmax of a decomposed attention;
- what is computed of the timestep and the frame stride up to the end of their two-layer perceptrons (angles reach 1000:
  half precision cannot hold them; the perceptrons see one row, so that float32 costs nothing);
- arithmetic on latents and images before the first product (a rounded 1 / 0.18215 would be a bias of all latents).
Normalisations take and give the low type and compute in float32 (`stash_type` 1): one node, so that engines fuse it.
Latents, images, the text embedding and the predicted noise are float32 at the graph's border, the text's keys and
values are of the low type.

On request the residual stream is an island too: x + f(x) in float32, read by normalisations in float32, while f
computes in the low type. It costs casts and memory traffic, so that only a stage that strays too far without is
written so. Where a stage is not finite without, the scores of its decomposed attentions are islands as well: a product
of queries and keys can pass float16's largest number, 65504, long before they do.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...errors import UserError
from .graph import FLOAT, Array, Graph

BORDER_FLOAT32 = frozenset(
    {"sample", "latents", "first_frame_latents", "image", "text_embeddings", "mean", "logvar", "noise_pred"}
)
# Their output is their first input, rearranged.
MOVEMENT = frozenset(
    {"Reshape", "Transpose", "Slice", "Gather", "Expand", "Squeeze", "Unsqueeze", "Split", "Identity", "Concat", "Pad"}
    | {"DepthToSpace", "Resize"}
)
_ELEMENTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Neg", "Pow", "Sqrt", "Exp", "Erf", "Clip", "Sigmoid", "Tanh", "Gelu", "Cos", "Sin"}
)
PRODUCTS = frozenset({"Conv", "MatMul", "Gemm"})
_NORMALISATIONS = frozenset({"GroupNormalization", "LayerNormalization"})
_FLOAT_TYPES = (FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# Inputs that are float32 whatever the type of the data.
_FLOAT32_INPUTS = {"Resize": (1, 2)}
# Products of a perceptron of a scalar.
_PERCEPTRON_LAYERS = 2


def lower(graph: Graph, low: int, *, wide_sums: bool = False, wide_scores: bool = False) -> int:
    """Retype `graph` in place.

    Args:
        graph: float32, its attentions scaled and in their final form.
        low: ONNX element type of the low precision.
        wide_sums: the residual sums stay in float32, and the normalisations that read them.
        wide_scores: so do the scores of decomposed attentions; their queries and keys are cast for it.

    Returns:
        How many residual sums stay in float32.

    Raises:
        UserError: an operator without a rule here.
    """
    sums = residual_sums(graph) if wide_sums else frozenset()
    _Lowering(graph, low, sums, attention_scores(graph) if wide_scores else frozenset()).run()
    return len(sums)


def residual_sums(graph: Graph) -> frozenset[str]:
    """Outputs of the sums of two computed values of which one, or the sum, is read again later: x + f(x), and the sum
    that begins a new x. Not those of a bias, of a rotation or of the timestep's embedding.
    """
    return frozenset(
        node.outputs[0].name
        for node in graph.body
        if node.op_type == "Add"
        and not any(value.is_initializer() for value in node.inputs)
        and any(len(value.uses()) > 1 for value in (*node.inputs, *node.outputs))
    )


def attention_scores(graph: Graph) -> frozenset[str]:
    """Outputs of the products of queries and keys in decomposed attentions: what a softmax reads, or with a mask adds
    before.
    """
    scores = set()
    for node in graph.body:
        value = node.inputs[0] if node.op_type == "Softmax" else None
        producer = None if value is None else value.producer()
        if producer is not None and producer.op_type == "Add" and producer.inputs[0] is not None:
            producer = producer.inputs[0].producer()
        if producer is not None and producer.op_type == "MatMul":
            scores.add(producer.outputs[0].name)
    return frozenset(scores)


class _Lowering:
    def __init__(self, graph: Graph, low: int, wide: frozenset[str], scores: frozenset[str]) -> None:
        self.graph, self.low, self.wide, self.scores = graph, ir.DataType(low), wide, scores
        self.types: dict[ir.Value, ir.DataType] = {}
        """Of every value of floats so far."""
        self.products: dict[ir.Value, int] = {}
        """Value computed of a scalar input alone -> products on the way to it."""
        self.casts: dict[tuple[ir.Value, int], ir.Value] = {}

    def run(self) -> None:
        for value in self.graph.body.inputs:
            if value.dtype == FLOAT:
                self._set(value, FLOAT if value.name in BORDER_FLOAT32 else self.low)
        for node in list(self.graph.body):
            self._type(node)
        self._finish_outputs()

    def _set(self, value: ir.Value, dtype: ir.DataType) -> None:
        self.types[value] = value.dtype = dtype

    def _type(self, node: ir.Node) -> None:
        floats = [value for value in node.inputs if value in self.types]
        constants = [value for value in node.inputs if value is not None and value.is_initializer()]
        if node.op_type == "Shape" or not (floats or any(value.dtype == FLOAT for value in constants)):
            # Integers and shapes; a cast of theirs to float begins the island of a scalar.
            if node.op_type == "Cast" and node.attributes.get_int("to") in _FLOAT_TYPES:
                node.attributes["to"] = ir.AttrInt64("to", FLOAT)
                self._set(node.outputs[0], FLOAT)
                self.products[node.outputs[0]] = 0
            return
        kind = self._kind(node, floats)
        for index, value in enumerate(node.inputs):
            if index in _FLOAT32_INPUTS.get(node.op_type, ()):
                continue
            if value in self.types:
                node.replace_input_with(index, self._as(value, kind, node))
            elif value in constants and value.dtype == FLOAT:
                node.replace_input_with(index, self._constant(value, kind))
        if node.op_type in _NORMALISATIONS:
            node.attributes["stash_type"] = ir.AttrInt64("stash_type", 1)
        depth = [self.products[value] for value in floats if value in self.products]
        for value in node.outputs:
            self._set(value, kind)
            if floats and len(depth) == len(floats):
                self.products[value] = max(depth) + (node.op_type in PRODUCTS)

    def _kind(self, node: ir.Node, floats: list[ir.Value]) -> ir.DataType:
        """The type a node computes in."""
        single = bool(floats) and all(self.types[value] == FLOAT for value in floats)
        op = node.op_type
        if op == "Softmax" or node.outputs[0].name in self.wide:
            return FLOAT
        if op in PRODUCTS:
            scalar = bool(floats) and all(self.products.get(v, _PERCEPTRON_LAYERS) < _PERCEPTRON_LAYERS for v in floats)
            return FLOAT if scalar or node.outputs[0].name in self.scores else self.low
        if op in _ELEMENTWISE or op in MOVEMENT:
            return FLOAT if single else self.low
        if op in _NORMALISATIONS:
            # A float32 sum is not rounded on its way in.
            return FLOAT if self.wide and single else self.low
        if op == "Attention":
            return self.low
        raise UserError(
            f"{self.graph.name}: operator {op} has no precision rule: use --precision fp32, or export the bundle "
            "with this version of consisti2v-rt."
        )

    def _as(self, value: ir.Value, kind: ir.DataType, reader: ir.Node) -> ir.Value:
        """The value in type `kind`, through one cast for all that want it."""
        if self.types[value] == kind:
            return value
        if (value, kind) not in self.casts:
            name = f"{value.name}_{kind.name.lower()}"
            self.casts[value, kind] = self.graph.insert(reader, "Cast", [value], name, kind, value.shape, to=int(kind))
        return self.casts[value, kind]

    def _constant(self, weight: ir.Value, kind: ir.DataType) -> ir.Value:
        """The constant in type `kind`; one that both types read exists twice."""
        if kind == FLOAT:
            return weight
        graph = self.graph

        def rounded() -> Array:
            with np.errstate(over="ignore"):
                values = graph.read(weight).astype(kind.numpy())
            if not np.isfinite(values).all():
                raise OverflowError(weight.name)
            return values

        name = f"{weight.name}_{kind.name.lower()}"
        return graph.add_weight(name, kind, weight.shape.numpy(), rounded, lambda: graph.read(weight))

    def _finish_outputs(self) -> None:
        """Outputs in the type of the border: the value that was one gives its name to a cast of it."""
        outputs = self.graph.body.outputs
        for index, value in enumerate(outputs):
            if value not in self.types:
                continue
            wanted, name = FLOAT if value.name in BORDER_FLOAT32 else self.low, value.name
            if self.types[value] == wanted:
                continue
            value.name = self.graph.fresh(f"{name}_inner")
            outputs[index] = ir.val(name, wanted, value.shape)
            self.graph.body.append(
                ir.node("Cast", [value], {"to": int(wanted)}, outputs=[outputs[index]], name=f"Cast_{name}")
            )
