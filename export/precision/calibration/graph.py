"""A float32 graph that also tells how large the inputs of its products are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..graph import Graph, Size

LARGEST, VALUES = "/largest", "/values"
"""Ends of the added outputs' names: the largest magnitude, and every so many values."""
_TO_THE_END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class ObservedGraph:
    """A graph in memory, its weights in their file."""

    name: str
    model: bytes
    weights: Path
    """Folder of the file."""
    observed: tuple[str, ...]
    """Activations, by name."""


def observe(graph: Graph, observed: Sequence[str], sizes: Mapping[str, int], quota: int) -> ObservedGraph:
    """`graph` with two outputs more for each activation: its largest magnitude, and about `quota` of its values.

    Only these leave the graph, so that the memory is that of the graph itself.

    Args:
        graph: as exported; it is not changed.
        observed: names of its values.
        sizes: usual sizes of dynamic dimensions.
        quota: values to take of each.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    added = model.graph

    def constant(name: str, values: Sequence[int]) -> str:
        added.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    flat, zero, end = (constant(f"/observe/{n}", [v]) for n, v in (("flat", -1), ("zero", 0), ("end", _TO_THE_END)))
    for name in observed:
        size, line = f"{name}/size", f"{name}/line"
        stride = constant(f"{name}/stride", [_stride(_count(graph.shape(name), sizes), quota)])
        added.node.extend(
            [
                helper.make_node("Abs", [name], [size]),
                helper.make_node("ReduceMax", [size], [name + LARGEST], keepdims=0),
                helper.make_node("Reshape", [name, flat], [line]),
                helper.make_node("Slice", [line, zero, end, zero, stride], [name + VALUES]),
            ]
        )
        added.output.append(helper.make_tensor_value_info(name + LARGEST, TensorProto.FLOAT, []))
        added.output.append(helper.make_tensor_value_info(name + VALUES, TensorProto.FLOAT, [None]))
    return ObservedGraph(graph.path.name, model.SerializeToString(), graph.path.parent.resolve(), tuple(observed))


def _count(shape: tuple[Size, ...] | None, sizes: Mapping[str, int]) -> int:
    """About how many values there are; formulas of sizes count as 1."""
    return math.prod(size if isinstance(size, int) else sizes.get(str(size), 1) for size in shape or ())


def _stride(count: int, quota: int) -> int:
    """Steps that meet every channel in turn: no factor in common with numbers of channels, frames or positions."""
    stride = max(1, count // quota)
    while stride > 1 and any(stride % prime == 0 for prime in (2, 3, 5, 7)):
        stride += 1
    return stride
