"""An ONNX graph with the shape of every tensor, read without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...runtime.install import install_hint


@dataclass(frozen=True)
class TensorShape:
    """Sizes of a tensor, and whether it holds numbers of the network's precision (integers are indices and shapes)."""

    shape: tuple[int, ...]
    floating: bool

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Node:
    """One operation; an absent optional input is the empty string."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Graph:
    """Nodes in the order they run."""

    nodes: tuple[Node, ...]
    tensors: Mapping[str, TensorShape]
    weights: frozenset[str]
    """Names of the initializers."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @cached_property
    def producers(self) -> dict[str, Node]:
        return {name: node for node in self.nodes for name in node.outputs}

    @cached_property
    def consumers(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found.setdefault(name, []).append(node)
        return found

    def floats(self, names: tuple[str, ...]) -> list[str]:
        """Those of the names that hold floating-point numbers, each once."""
        return [name for name in dict.fromkeys(names) if name and self.tensors[name].floating]


def read_graph(path: Path, rows: int = 1) -> Graph:
    """Read a graph of fixed size and complete its shapes; external data is not touched.

    Args:
        path: the ONNX file.
        rows: batch to count where the graph leaves it open.

    Raises:
        UserError: the onnx package is missing, the file is no ONNX graph, or a shape stays unknown, as in
            graphs of dynamic size.
    """
    try:
        import onnx
    except ImportError:
        raise UserError(f"counting a graph needs onnx: {install_hint('bench')}.") from None
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (OSError, DecodeError) as error:
        raise UserError(f"{path} is not a readable ONNX file ({error}): export the bundle again.") from None
    _fix_rows(model, rows)
    known = _shapes(model)
    if any(name not in known for node in model.graph.node for name in node.output if name):
        known |= _shapes(onnx.shape_inference.infer_shapes(model, data_prop=True))
    nodes = tuple(
        Node(
            node.name,
            node.op_type,
            tuple(node.input),
            tuple(name for name in node.output if name),
            {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute},
        )
        for node in model.graph.node
    )
    unknown = [name for node in nodes for name in node.outputs if name not in known]
    if unknown:
        raise UserError(
            f"{path.name}: the shape of {unknown[0]!r} (and {len(unknown) - 1} more) is not known: "
            "export the bundle without --dynamic."
        )
    weights = frozenset(entry.name for entry in model.graph.initializer)
    inputs = tuple(entry.name for entry in model.graph.input if entry.name not in weights)
    return Graph(nodes, known, weights, inputs, tuple(entry.name for entry in model.graph.output))


def _fix_rows(model: Any, rows: int) -> None:
    """Give an open batch a size; the exporter writes it as ``rows`` and what depends on it as ``16*rows``."""
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        for size in value.type.tensor_type.shape.dim:
            factors = size.dim_param.split("*") if size.HasField("dim_param") else []
            if factors.count("rows") == 1 and all(factor == "rows" or factor.isdigit() for factor in factors):
                size.dim_value = rows * prod(int(factor) for factor in factors if factor != "rows")


def _shapes(model: Any) -> dict[str, TensorShape]:
    """Every tensor of the graph whose sizes are all numbers."""
    floating = _floating_types()
    found = {}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        kind = value.type.tensor_type
        sizes = tuple(entry.dim_value for entry in kind.shape.dim if entry.HasField("dim_value"))
        if kind.HasField("shape") and len(sizes) == len(kind.shape.dim):
            found[value.name] = TensorShape(sizes, kind.elem_type in floating)
    for entry in model.graph.initializer:
        found[entry.name] = TensorShape(tuple(entry.dims), entry.data_type in floating)
    return found


def _floating_types() -> set[int]:
    from onnx import TensorProto

    return {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
