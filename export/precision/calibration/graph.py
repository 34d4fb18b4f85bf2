"""A float32 graph that also tells how large the inputs of its products are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ....runtime.bundle.graph_source import GraphSource
from ..graph import Graph

LARGEST, VALUES = "/largest", "/values"
"""Ends of the added outputs' names: the largest magnitude, and every so many values."""
_PERIOD = 30
_TO_THE_END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class ObservedGraph:
    """A graph with outputs for what is observed."""

    source: GraphSource
    observed: tuple[str, ...]
    """Activations, by name."""
    quota: int
    """Values to keep of each run, :func:`thinned`; the graph gives up to 30 times as many."""


def observe(graph: Graph, observed: Sequence[str], quota: int) -> ObservedGraph:
    """`graph` with two outputs more for each activation: its largest magnitude, and some of its values.

    Only these leave the graph, so that the memory is that of the graph itself. Values are taken at a stride that the
    graph works out of the size it finds: 30 n + 1, which has no factor in common with numbers of channels, frames or
    positions, so that every channel is met.

    Args:
        graph: as exported; it is not changed.
        observed: names of its values.
        quota: values to keep of each.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    added = model.graph

    def constant(name: str, values: Sequence[int]) -> str:
        added.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    constants = (("flat", -1), ("zero", 0), ("end", _TO_THE_END), ("one", 1), ("period", _PERIOD))
    flat, zero, end, one, period = (constant(f"/observe/{name}", [value]) for name, value in constants)
    wanted = constant("/observe/wanted", [_PERIOD * quota])
    following: dict[str, list[Any]] = {name: [] for name in observed}
    for name in observed:
        size, line = f"{name}/magnitude", f"{name}/line"
        count, periods, steps, stride = (f"{name}/{part}" for part in ("count", "periods", "steps", "stride"))
        following[name] = [
            helper.make_node("Abs", [name], [size]),
            helper.make_node("ReduceMax", [size], [name + LARGEST], keepdims=0),
            helper.make_node("Reshape", [name, flat], [line]),
            helper.make_node("Shape", [line], [count]),
            helper.make_node("Div", [count, wanted], [periods]),
            helper.make_node("Mul", [periods, period], [steps]),
            helper.make_node("Add", [steps, one], [stride]),
            helper.make_node("Slice", [line, zero, end, zero, stride], [name + VALUES]),
        ]
        added.output.append(helper.make_tensor_value_info(name + LARGEST, TensorProto.FLOAT, []))
        added.output.append(helper.make_tensor_value_info(name + VALUES, TensorProto.FLOAT, [None]))
    # Right behind what they look at, or every activation would be kept to the end (see session.py).
    nodes = [node for name in graph.inputs for node in following.get(name, ())]
    for node in graph.nodes:
        nodes += [node, *(after for name in node.output for after in following.get(name, ()))]
    del added.node[:]
    added.node.extend(nodes)
    return ObservedGraph(graph.source.with_model(model.SerializeToString()), tuple(observed), quota)


def thinned(values: NDArray[np.float32], quota: int) -> NDArray[np.float32]:
    """At most `quota` values of a line, evenly spread."""
    if len(values) <= quota:
        return values
    return values[np.linspace(0, len(values) - 1, quota).astype(np.int64)]
