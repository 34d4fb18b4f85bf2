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
written so.
"""

from __future__ import annotations

from dataclasses import replace

from onnx import NodeProto, TensorProto, helper

from ...errors import UserError
from .graph import FLOAT_TYPES, Graph, attribute, cast, set_attribute

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
# Inputs that are float32 whatever the type of the data.
_FLOAT32_INPUTS = {"Resize": (1, 2)}
# Products of a perceptron of a scalar.
_PERCEPTRON_LAYERS = 2


def lower(graph: Graph, low: int, *, wide_sums: bool = False) -> int:
    """Retype `graph` in place.

    Args:
        graph: float32, its attentions scaled and in their final form.
        low: ONNX element type of the low precision.
        wide_sums: the residual sums stay in float32, and the normalisations that read them.

    Returns:
        How many residual sums stay in float32.

    Raises:
        UserError: an operator without a rule here.
    """
    sums = residual_sums(graph) if wide_sums else frozenset()
    _Lowering(graph, low, sums).run()
    return len(sums)


def residual_sums(graph: Graph) -> frozenset[str]:
    """Outputs of the sums of two computed values of which one, or the sum, is read again later: x + f(x), and the sum
    that begins a new x. Not those of a bias, of a rotation or of the timestep's embedding.
    """
    readers = graph.consumers()
    return frozenset(
        node.output[0]
        for node in graph.nodes
        if node.op_type == "Add"
        and not any(name in graph.weights for name in node.input)
        and any(len(readers[name]) > 1 for name in (*node.input, *node.output))
    )


class _Lowering:
    def __init__(self, graph: Graph, low: int, wide: frozenset[str]) -> None:
        self.graph, self.low, self.wide = graph, low, wide
        self.types: dict[str, int] = {}
        self.products: dict[str, int] = {}
        """Value computed of a scalar input alone -> products on the way to it."""
        self.casts: dict[tuple[str, int], str] = {}
        self.nodes: list[NodeProto] = []

    def run(self) -> None:
        graph = self.graph
        for name, elem_type in graph.inputs.items():
            if elem_type == TensorProto.FLOAT:
                self.types[name] = TensorProto.FLOAT if name in BORDER_FLOAT32 else self.low
                graph.inputs[name] = self.types[name]
        for node in graph.nodes:
            self._add(node)
        self._finish_outputs()
        graph.nodes = self.nodes
        for name, elem_type in self.types.items():
            graph.set_value(name, elem_type, graph.shape(name))

    def _add(self, node: NodeProto) -> None:
        floats = [name for name in node.input if name in self.types]
        constants = [i for i, name in enumerate(node.input) if self._is_float_constant(name)]
        if node.op_type == "Shape" or (not floats and not constants):
            self._add_plain(node)
            return
        kind = self._kind(node, floats)
        fixed = _FLOAT32_INPUTS.get(node.op_type, ())
        for index, name in enumerate(node.input):
            if index in fixed:
                continue
            if name in self.types:
                node.input[index] = self._as(name, kind)
            elif index in constants:
                node.input[index] = self._constant(name, kind)
        if node.op_type in _NORMALISATIONS:
            set_attribute(node, "stash_type", 1)
        self.nodes.append(node)
        depth = [self.products[name] for name in floats if name in self.products]
        for name in node.output:
            self.types[name] = kind
            if floats and len(depth) == len(floats):
                self.products[name] = max(depth) + (node.op_type in PRODUCTS)

    def _add_plain(self, node: NodeProto) -> None:
        """Integers and shapes; a cast of theirs to float begins the island of a scalar."""
        self.nodes.append(node)
        if node.op_type == "Cast" and attribute(node, "to") in FLOAT_TYPES:
            self.types[node.output[0]] = TensorProto.FLOAT
            self.products[node.output[0]] = 0
            set_attribute(node, "to", TensorProto.FLOAT)

    def _kind(self, node: NodeProto, floats: list[str]) -> int:
        """The type a node computes in."""
        single = bool(floats) and all(self.types[name] == TensorProto.FLOAT for name in floats)
        op = node.op_type
        if op == "Softmax" or node.output[0] in self.wide:
            return TensorProto.FLOAT
        if op in PRODUCTS:
            scalar = bool(floats) and all(self.products.get(n, _PERCEPTRON_LAYERS) < _PERCEPTRON_LAYERS for n in floats)
            return TensorProto.FLOAT if scalar else self.low
        if op in _ELEMENTWISE or op in MOVEMENT:
            return TensorProto.FLOAT if single else self.low
        if op in _NORMALISATIONS:
            # A float32 sum is not rounded on its way in.
            return TensorProto.FLOAT if self.wide and single else self.low
        if op == "Attention":
            return self.low
        raise UserError(
            f"{self.graph.name}: operator {op} has no precision rule: use --precision fp32, or export the bundle "
            "with this version of consisti2v-rt."
        )

    def _is_float_constant(self, name: str) -> bool:
        weight = self.graph.weights.get(name)
        return weight is not None and weight.is_float

    def _as(self, name: str, kind: int) -> str:
        """The value in type `kind`, through one cast for all that want it."""
        if self.types[name] == kind:
            return name
        if (name, kind) not in self.casts:
            output = self.graph.fresh(f"{name}_{TensorProto.DataType.Name(kind).lower()}")
            self.nodes.append(cast(name, kind, output))
            self.graph.set_value(output, kind, self.graph.shape(name))
            self.casts[name, kind] = output
        return self.casts[name, kind]

    def _constant(self, name: str, kind: int) -> str:
        """The constant in type `kind`; one that both types read exists twice."""
        typed = f"{name}_{TensorProto.DataType.Name(kind).lower()}" if kind != TensorProto.FLOAT else name
        if typed not in self.graph.weights:
            self.graph.weights[typed] = replace(self.graph.weights[name], elem_type=kind)
        return typed

    def _finish_outputs(self) -> None:
        """Outputs in the type of the border: the node that made one gives way to a cast of that name."""
        graph = self.graph
        for name, elem_type in graph.outputs.items():
            if elem_type != TensorProto.FLOAT:
                continue
            wanted = TensorProto.FLOAT if name in BORDER_FLOAT32 else self.low
            graph.outputs[name] = wanted
            if self.types[name] == wanted:
                continue
            inner = graph.fresh(f"{name}_inner")
            graph.set_value(inner, self.types[name], graph.shape(name))
            for node in self.nodes:
                for names in (node.input, node.output):
                    for index, used in enumerate(names):
                        if used == name:
                            names[index] = inner
            self.nodes.append(helper.make_node("Cast", [inner], [name], name=f"cast_{name}", to=wanted))
            self.types[name] = wanted
