"""A graph read by OpenVINO from memory. Its ONNX reader takes weights from files alone, which it would map.

So an initialiser whose values lie elsewhere is given as an input, and once the graph is read the input is replaced by a
constant over our memory: nothing is copied, and nothing is a file. Small ones are written into the graph, because the
reader wants to see the values of shapes, axes and scales.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..bundle.graph_source import GraphSource
from ..bundle.onnx_walker import DTYPES, ExternalTensor
from ..files.opened_file import Bytes

_SMALL = 1 << 16
"""Bytes."""


def read_in_memory(core: Any, openvino: Any, source: GraphSource) -> Any:
    """An ``openvino.Model`` of the graph and its weights.

    Raises:
        UserError: the graph's files are not as they should be.
        RuntimeError: OpenVINO cannot read the graph.
    """
    weights, metadata = source.weights(), source.metadata
    values = {t.name: weights[t.location][t.offset : t.offset + t.nbytes] for t in metadata.external}
    # NumPy has no such types to make a constant of.
    large = {
        t.name: t for t in metadata.external if t.nbytes > _SMALL and DTYPES.get(t.elem_type, "bfloat16") != "bfloat16"
    }
    model = core.read_model(_with_inputs(source.model, metadata.external, large, values, metadata.place), b"")
    for parameter in model.get_parameters():
        tensor = large.get(parameter.get_output_tensor(0).any_name)
        if tensor is not None:
            array = _as_array(values[tensor.name], tensor)
            constant = openvino.op.Constant(array, shared_memory=True)
            constant.set_friendly_name(tensor.name)
            parameter.output(0).replace(constant.output(0))
            model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()
    return model


def _as_array(content: Bytes, tensor: ExternalTensor) -> Any:
    dtype = np.dtype(DTYPES[tensor.elem_type])
    if content.ctypes.data % dtype.itemsize:
        content = content.copy()
    return content.view(dtype).reshape(tensor.shape)


def _with_inputs(
    model: bytes,
    external: list[ExternalTensor],
    large: dict[str, ExternalTensor],
    values: dict[str, Bytes],
    place: tuple[int, int, int],
) -> bytes:
    """The serialised model with inputs in place of large initialisers, and the values of the small ones in it."""
    begin, start, end = place
    parts, done = [], start
    for tensor in external:
        first, last = tensor.place
        parts.append(model[done:first])
        if tensor.name in large:
            parts.append(_field(11, _field(1, tensor.name.encode()) + _field(2, _tensor_type(tensor))))
        else:
            dims = b"".join(_varint(1 << 3) + _varint(size) for size in tensor.shape)
            kind = _varint(2 << 3) + _varint(tensor.elem_type)
            content = values[tensor.name].tobytes()
            parts.append(_field(5, dims + kind + _field(8, tensor.name.encode()) + _field(9, content)))
        done = last
    parts.append(model[done:end])
    return model[:begin] + _field(7, b"".join(parts)) + model[end:]


def _tensor_type(tensor: ExternalTensor) -> bytes:
    """TypeProto of a tensor of fixed sizes."""
    shape = b"".join(_field(1, _varint(1 << 3) + _varint(size)) for size in tensor.shape)
    return _field(1, _varint(1 << 3) + _varint(tensor.elem_type) + _field(2, shape))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
