"""Weights on their way from one ONNX file to another: scaled and rounded one at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ...runtime.files.opened_file import Bytes

Array = NDArray[Any]

# Shorter tensors stay inside the .onnx file, as the exporter does it.
_INLINE_BYTES = 1024
_ALIGNMENT = 64

NUMPY_TYPES: dict[int, Any] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    TensorProto.INT8: np.dtype(np.int8),
    TensorProto.FLOAT8E4M3FN: np.dtype(ml_dtypes.float8_e4m3fn),
}
# The largest quantised value. INT8 leaves -128 out, as TensorRT does: a symmetric range.
LARGEST = {TensorProto.INT8: 127.0, TensorProto.FLOAT8E4M3FN: 448.0}


@dataclass(frozen=True)
class Weight:
    """A constant of the new graph, as a recipe over one of the old graph."""

    source: TensorProto
    elem_type: int
    factor: float = 1.0
    """Multiplied in float32, before any rounding."""
    channel_axis: int | None = None
    """Output channels of a quantised weight: each has a scale of its own."""
    scale_of: int | None = None
    """This is the scales of a weight quantised to this element type, in `elem_type`."""

    @property
    def is_float(self) -> bool:
        return self.source.data_type == TensorProto.FLOAT

    @property
    def dims(self) -> tuple[int, ...]:
        if self.scale_of is not None:
            assert self.channel_axis is not None
            return (self.source.dims[self.channel_axis],)
        return tuple(self.source.dims)

    def array(self, contents: Mapping[str, Bytes]) -> Array:
        """The values, from the tensor itself or from the content of the file it names.

        Raises:
            OverflowError: a weight is beyond what the element type holds.
        """
        values = _read(self.source, contents)
        if not self.is_float:
            return values
        if self.factor != 1.0:
            values = values * np.float32(self.factor)
        quantised = self.scale_of if self.scale_of is not None else self.elem_type
        if quantised in LARGEST:
            assert self.channel_axis is not None
            scales = channel_scales(values, self.channel_axis, LARGEST[quantised])
            if self.scale_of is not None:
                return scales.astype(NUMPY_TYPES[self.elem_type])
            return _quantise(values, scales, self.channel_axis, self.elem_type)
        with np.errstate(over="ignore"):
            rounded = values.astype(NUMPY_TYPES[self.elem_type])
        if not np.isfinite(rounded).all():
            raise OverflowError(self.source.name)
        return rounded


def channel_scales(values: Array, axis: int, largest: float) -> NDArray[np.float16]:
    """One float16 scale per channel, rounded up so that nothing is clipped; never subnormal, never 0."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    exact = np.maximum(np.abs(values).max(axis=others) / np.float32(largest), np.finfo(np.float16).tiny)
    scales = exact.astype(np.float16)
    return np.where(scales < exact, np.nextafter(scales, np.float16(np.inf)), scales)


def _quantise(values: Array, scales: NDArray[np.float16], axis: int, elem_type: int) -> Array:
    shape = [1] * values.ndim
    shape[axis] = -1
    ratio = values / scales.astype(np.float32).reshape(shape)
    if elem_type == TensorProto.INT8:
        return np.clip(np.rint(ratio), -127, 127).astype(np.int8)
    return ratio.astype(NUMPY_TYPES[elem_type])


def external_entries(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _read(tensor: TensorProto, contents: Mapping[str, Bytes]) -> Array:
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    entries = external_entries(tensor)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    offset, size = int(entries.get("offset", 0)), math.prod(tensor.dims) * dtype.itemsize
    return contents[entries["location"]][offset : offset + size].view(dtype).reshape(tuple(tensor.dims))


def write_weights(weights: Mapping[str, Weight], contents: Mapping[str, Bytes], data_path: Path) -> list[TensorProto]:
    """Write every weight, large ones one after the other into `data_path`; returns the graph's initializers."""
    tensors = []
    with data_path.open("wb") as file:
        for name, weight in weights.items():
            array = weight.array(contents)
            elem_type = weight.elem_type if weight.is_float else weight.source.data_type
            tensor = TensorProto(name=name, dims=array.shape, data_type=elem_type)
            data = np.ascontiguousarray(array).view(np.uint8) if array.ndim else np.asarray(array).reshape(1)
            if array.nbytes <= _INLINE_BYTES:
                tensor.raw_data = data.tobytes()
            else:
                file.write(b"\0" * (-file.tell() % _ALIGNMENT))
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in (("location", data_path.name), ("offset", file.tell()), ("length", array.nbytes)):
                    tensor.external_data.add(key=key, value=str(value))
                file.write(data.data)
            tensors.append(tensor)
    return tensors
