"""A half-precision graph where no such kernels exist: the same graph in float32, every value rounded to its type.

ONNX Runtime's CPU provider has next to no bfloat16 operators; float16 ones it runs in float32 wherever it lacks a
kernel and then drops the casts between them, so that an overflow on a GPU would not show. The simulation takes the
written weights and rounds what every operator gives: the numbers of a GPU that multiplies in half precision and
accumulates in float32, infinities included; on request those of one that accumulates in float16.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common as passes

from .accumulation import sum_in_float16
from .graph import FLOAT
from .lowering import MOVEMENT

_SCALED = ("QuantizeLinear", "DequantizeLinear")


def write_simulation(source: Path, target: Path, rounded: int, *, float16_sums: bool = False) -> None:
    """Write the simulation of the graph at `source`, into the same folder: it reads the weights of `source`.

    Args:
        source: a strongly typed graph with its weights beside it.
        target: where to; inputs and outputs of the type `rounded` are float32 in it.
        rounded: ONNX element type of the half precision.
        float16_sums: products add up in float16 (see :mod:`.accumulation`).
    """
    model = ir.load(source)
    if float16_sums:
        sum_in_float16(model)
    graph, half = model.graph, ir.DataType(rounded)
    nodes = list(graph)
    for weight in graph.initializers.values():
        # The scales of 8-bit values stay as they are.
        readers = [use for use in weight.uses() if use.node.op_type not in _SCALED or use.idx != 1]
        if weight.dtype == half and readers:
            wide = _cast(weight, FLOAT, "wide")
            graph.insert_before(nodes[0], wide)
            for use in readers:
                use.node.replace_input_with(use.idx, wide.outputs[0])
    for value in graph.inputs:
        if value.dtype == half:
            value.dtype = FLOAT
            graph.insert_before(nodes[0], _round(graph, value, half))
    for node in nodes:
        if node.op_type == "QuantizeLinear":
            # Its input is rounded already: a cast to the type of its scale is exact.
            narrow = _cast(node.inputs[0], half, f"of/{node.outputs[0].name}")
            graph.insert_before(node, narrow)
            node.replace_input_with(0, narrow.outputs[0])
        for value in node.outputs:
            is_half = value.dtype == half
            if is_half:
                value.dtype = FLOAT
            if is_half and node.op_type not in MOVEMENT:
                graph.insert_after(node, _round(graph, value, half))
            if not value.is_graph_output():
                # Its note is of another type by now.
                value.type = value.shape = None
    # The reader of graphs takes no functions.
    passes.InlinePass()(model)
    ir.save(model, target)


def _cast(value: ir.Value, to: ir.DataType, part: str) -> ir.Node:
    return ir.node("Cast", [value], {"to": int(to)}, outputs=[ir.Value(name=f"{value.name}/{part}")])


def _round(graph: ir.Graph, value: ir.Value, half: ir.DataType) -> list[ir.Node]:
    """Nodes that round a value; whoever reads it reads what they give, and so does an output of the graph."""
    readers = list(value.uses())
    narrow = _cast(value, half, "half")
    wide = _cast(narrow.outputs[0], FLOAT, "rounded")
    for use in readers:
        use.node.replace_input_with(use.idx, wide.outputs[0])
    for index, output in enumerate(graph.outputs):
        if output is value:
            name, value.name = value.name, f"{value.name}/exact"
            wide.outputs[0].name, wide.outputs[0].type, wide.outputs[0].shape = name, value.type, value.shape
            graph.outputs[index] = wide.outputs[0]
    return [narrow, wide]
