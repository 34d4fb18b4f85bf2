"""A float32 ONNX graph opened for rewriting: nodes in order, constants as recipes, shapes by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from ...errors import UserError
from ...runtime.bundle.graph_source import GraphSource
from ...runtime.files.opened_file import Bytes
from .weights import Weight, write_weights

OPSET = 23
Size = int | str | None


class Graph:
    """The main graph of a model whose weights are read when they are first asked for.

    Raises:
        UserError: not an opset-23 graph without functions or sub-graphs, as `consisti2v export` writes it.
    """

    def __init__(self, source: GraphSource | Path) -> None:
        self.source = GraphSource.of(source)
        self.name = self.source.file_name
        self.model: ModelProto = onnx.load_model_from_string(self.source.model)
        opsets = {entry.domain: entry.version for entry in self.model.opset_import}
        if opsets.get("") != OPSET or self.model.functions:
            raise UserError(f"{self.name} is opset {opsets.get('')}, not {OPSET}: export the bundle again.")
        graph = self.model.graph
        self.nodes: list[NodeProto] = list(graph.node)
        self.weights: dict[str, Weight] = {t.name: Weight(t, t.data_type) for t in graph.initializer}
        self.inputs = {value.name: value.type.tensor_type.elem_type for value in graph.input}
        self.outputs = {value.name: value.type.tensor_type.elem_type for value in graph.output}
        self._values: dict[str, ValueInfoProto] = {
            value.name: value for value in (*graph.value_info, *graph.input, *graph.output)
        }
        self._names = {*self._values, *self.weights, *(name for node in self.nodes for name in node.output)}

    @cached_property
    def contents(self) -> dict[str, Bytes]:
        """The files of the weights, by the location as the graph spells it."""
        return self.source.weights()

    def fresh(self, name: str) -> str:
        """A value name that is not taken yet, from `name`."""
        candidate, count = name, 0
        while candidate in self._names:
            count += 1
            candidate = f"{name}_{count}"
        self._names.add(candidate)
        return candidate

    def shape(self, name: str) -> tuple[Size, ...] | None:
        """Sizes of a value: numbers, names of dynamic sizes, or None where nothing is known."""
        if name in self.weights:
            return self.weights[name].dims
        value = self._values.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        return tuple(
            dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None)
            for dim in value.type.tensor_type.shape.dim
        )

    def elem_type(self, name: str) -> int | None:
        """ONNX element type of a value in the float32 graph."""
        if name in self.weights:
            return self.weights[name].source.data_type
        value = self._values.get(name)
        return value.type.tensor_type.elem_type if value is not None else None

    def set_value(self, name: str, elem_type: int, shape: Iterable[Size] | None) -> None:
        """Note the type of a value; the graph is checked against these notes when it is written."""
        self._values[name] = helper.make_tensor_value_info(name, elem_type, None if shape is None else list(shape))

    def consumers(self) -> dict[str, list[tuple[NodeProto, int]]]:
        """value -> (node, index of the input) that read it."""
        readers: dict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
        for node in self.nodes:
            for index, name in enumerate(node.input):
                readers[name].append((node, index))
        return readers

    def producers(self) -> dict[str, NodeProto]:
        return {name: node for node in self.nodes for name in node.output}

    def write(self, path: Path) -> None:
        """Write the graph to `path`, its weights to ``<path>.data``, and check both by path.

        Raises:
            UserError: a weight overflows its type.
        """
        used = {name for node in self.nodes for name in node.input}
        weights = {name: weight for name, weight in self.weights.items() if name in used}
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            tensors = write_weights(weights, self.contents, path.with_name(path.name + ".data"))
        except OverflowError as error:
            raise UserError(
                f"weight {error} of {self.name} does not fit this precision: use --precision bf16 or fp32."
            ) from None
        graph = self.model.graph
        produced = {name for node in self.nodes for name in node.output}
        border = {*self.inputs, *self.outputs}
        values = [value for name, value in self._values.items() if name in produced and name not in border]
        written = helper.make_graph(
            self.nodes,
            graph.name,
            [self._border(value, self.inputs) for value in graph.input],
            [self._border(value, self.outputs) for value in graph.output],
            tensors,
            value_info=values,
        )
        model = ModelProto()
        model.CopyFrom(self.model)
        model.graph.CopyFrom(written)
        onnx.save_model(model, str(path))
        onnx.checker.check_model(str(path), full_check=True)

    @staticmethod
    def _border(value: ValueInfoProto, types: dict[str, int]) -> ValueInfoProto:
        changed = ValueInfoProto()
        changed.CopyFrom(value)
        changed.type.tensor_type.elem_type = types[value.name]
        return changed


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute."""
    for entry in node.attribute:
        if entry.name == name:
            return helper.get_attribute_value(entry)
    return default


def set_attribute(node: NodeProto, name: str, value: Any) -> None:
    kept = [entry for entry in node.attribute if entry.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def cast(source: str, to: int, output: str) -> NodeProto:
    return helper.make_node("Cast", [source], [output], name=f"cast_{output}", to=to)


FLOAT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
