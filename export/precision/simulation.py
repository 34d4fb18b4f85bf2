"""A half-precision graph where no such kernels exist: the same graph in float32, every value rounded to its type.

ONNX Runtime's CPU provider has next to no bfloat16 operators; float16 ones it runs in float32 wherever it lacks a
kernel and then drops the casts between them, so that an overflow on a GPU would not show. The simulation takes the
written weights and rounds what every operator gives: the numbers of a GPU that multiplies in half precision and
accumulates in float32, infinities included.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto, helper

from .lowering import MOVEMENT

_WIDE = TensorProto.FLOAT


def write_simulation(source: Path, target: Path, rounded: int) -> None:
    """Write the simulation of the graph at `source`, into the same folder: it reads the weights of `source`.

    Args:
        source: a strongly typed graph with its weights beside it.
        target: where to; inputs and outputs of the type `rounded` are float32 in it.
        rounded: ONNX element type of the half precision.
    """
    model = onnx.load(str(source), load_external_data=False)
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    renamed: dict[str, str] = {}
    for value in graph.input:
        if types[value.name] == rounded:
            value.type.tensor_type.elem_type = _WIDE
            renamed[value.name] = f"{value.name}/rounded"
            nodes += _rounding(value.name, renamed[value.name], rounded)
    scales = {node.input[1] for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    for tensor in graph.initializer:
        if tensor.data_type == rounded and tensor.name not in scales:
            renamed[tensor.name] = f"{tensor.name}/wide"
            nodes.append(helper.make_node("Cast", [tensor.name], [renamed[tensor.name]], to=_WIDE))
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        if node.op_type == "QuantizeLinear":
            # Its input is rounded already: a cast to the type of its scale is exact.
            narrow = f"{node.output[0]}/narrow"
            nodes.append(helper.make_node("Cast", [node.input[0]], [narrow], to=rounded))
            node.input[0] = narrow
        if node.op_type == "Cast" and types[node.output[0]] == rounded:
            nodes += _rounding(node.input[0], node.output[0], rounded)
            continue
        nodes.append(node)
        if node.op_type in MOVEMENT:
            continue
        for index, name in enumerate(node.output):
            if name and types[name] == rounded:
                node.output[index] = f"{name}/exact"
                nodes += _rounding(f"{name}/exact", name, rounded)
    for value in graph.output:
        if value.type.tensor_type.elem_type == rounded:
            value.type.tensor_type.elem_type = _WIDE
    del graph.value_info[:]
    del graph.node[:]
    graph.node.extend(nodes)
    target.write_bytes(model.SerializeToString())


def _rounding(source: str, output: str, rounded: int) -> list[NodeProto]:
    half = f"{output}/half"
    return [
        helper.make_node("Cast", [source], [half], to=rounded),
        helper.make_node("Cast", [half], [output], to=_WIDE),
    ]
