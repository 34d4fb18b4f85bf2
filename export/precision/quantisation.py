"""Products in 8 bits: weights behind a DequantizeLinear each, and where a calibration gave scales their inputs between
a QuantizeLinear and a DequantizeLinear.

Symmetric (Jacob et al. 2018, arXiv:1712.05877): INT8 over [-127, 127], FP8 E4M3 over [-448, 448]. A weight has one
scale per output channel, an activation one. Scales are float16 like the activations.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .graph import FLOAT, Array, Graph
from .lowering import MOVEMENT, PRODUCTS
from .recipe import Recipe

LARGEST = {ir.DataType.INT8: 127.0, ir.DataType.FLOAT8E4M3FN: 448.0}
"""The largest quantised value. INT8 leaves -128 out, as TensorRT does: a symmetric range."""
# Products at the border of the network (4 latent channels) hold few weights and every bit of the result.
_FEWEST_CHANNELS = 8
# Of an activation: a product of one row per image (the time embedding's) takes no time, and its input is no average
# over positions.
_FEWEST_DIMENSIONS = 3
_REARRANGED = MOVEMENT - {"Concat"}


def observed_inputs(graph: Graph) -> list[str]:
    """Activations to quantise: what the quantised products of a float32 graph read, each once.

    Products of two activations (scores and values of an attention) are none of them. Neither are those that read the
    residual stream itself (shortcuts over a concatenated skip, resampling): nothing has normalised it, its two halves
    have ranges of their own, and what is lost there stays in the stream (Li et al. 2023, arXiv:2302.04304, on the
    shortcuts of diffusion U-Nets).
    """
    read = [node.inputs[0] for node in graph.body if _channel_axis(node, FLOAT) is not None]
    return [value.name for value in dict.fromkeys(read) if _is_wide(value) and not _is_residual(value)]


def quantise(graph: Graph, recipe: Recipe, scales: Mapping[str, float]) -> tuple[int, int]:
    """Put the products of a lowered graph into 8 bits.

    Args:
        graph: lowered to the type of the recipe's activations.
        recipe: nothing is done where its weights are not in 8 bits.
        scales: one for each activation to quantise, by its name in the float32 graph (:func:`observed_inputs`).

    Returns:
        How many weights, how many activations.
    """
    if recipe.weights is None:
        return 0, 0
    wide, narrow = ir.DataType(recipe.activations), ir.DataType(recipe.weights)
    dequantised: dict[tuple[ir.Value, int], ir.Value] = {}
    narrowed: dict[ir.Value, ir.Value] = {}
    for node in list(graph.body):
        axis = _channel_axis(node, wide)
        if axis is None:
            continue
        source, weight = node.inputs[0], node.inputs[1]
        if (weight, axis) not in dequantised:
            dequantised[weight, axis] = _dequantise(graph, node, weight, axis, wide, narrow)
        node.replace_input_with(1, dequantised[weight, axis])
        before = source.producer()
        lowered = before is not None and before.op_type == "Cast"
        scale = scales.get(source.name, scales.get(before.inputs[0].name if lowered else source.name))
        if scale is not None and _is_wide(source):
            if source not in narrowed:
                narrowed[source] = _narrow(graph, node, source, scale, wide, narrow)
            node.replace_input_with(0, narrowed[source])
    return len(dequantised), len(narrowed)


def _is_residual(value: ir.Value) -> bool:
    """Whether a value is a concatenation or a sum of two activations, perhaps rearranged."""
    node = value.producer()
    while node is not None and node.op_type in _REARRANGED:
        node = node.inputs[0].producer()
    if node is None:
        return False
    return node.op_type == "Concat" or (
        node.op_type == "Add" and not any(operand.is_initializer() for operand in node.inputs)
    )


def _is_wide(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) >= _FEWEST_DIMENSIONS


def _narrow(
    graph: Graph, node: ir.Node, value: ir.Value, scale: float, wide: ir.DataType, narrow: ir.DataType
) -> ir.Value:
    """To 8 bits and back."""
    name, shape = value.name, value.shape
    step = graph.add_weight(graph.fresh(f"{name}_scale"), wide, (), lambda: np.array(scale, wide.numpy()))
    quantised = graph.insert(
        node, "QuantizeLinear", [value, step], f"{name}_quantised", narrow, shape, output_dtype=int(narrow)
    )
    return graph.insert(node, "DequantizeLinear", [quantised, step], f"{name}_dequantised", wide, shape)


def _channel_axis(node: ir.Node, activations: ir.DataType) -> int | None:
    """The axis of a product's weight that counts its output channels; None where it is not quantised."""
    if node.op_type not in PRODUCTS or not node.inputs[1].is_initializer():
        return None
    weight = node.inputs[1]
    if weight.dtype != activations or min(weight.shape.numpy()[:2]) < _FEWEST_CHANNELS:
        return None
    if node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0)):
        return 0
    return 1 if len(weight.shape) == 2 else None


def _dequantise(
    graph: Graph, node: ir.Node, weight: ir.Value, axis: int, wide: ir.DataType, narrow: ir.DataType
) -> ir.Value:
    """The weight from 8 bits, rounded from what it was in float32."""
    name, shape = weight.name, weight.shape.numpy()

    def scales() -> NDArray[np.float16]:
        return channel_scales(graph.read(weight), axis, LARGEST[narrow])

    def values() -> Array:
        exact = graph.read(weight)
        by_channel = [-1 if each == axis else 1 for each in range(exact.ndim)]
        ratio = exact / channel_scales(exact, axis, LARGEST[narrow]).astype(np.float32).reshape(by_channel)
        return rounded(ratio, narrow)

    quantised = graph.add_weight(graph.fresh(f"{name}_quantised"), narrow, shape, values)
    steps = graph.add_weight(graph.fresh(f"{name}_scales"), wide, shape[axis : axis + 1], scales)
    return graph.insert(node, "DequantizeLinear", [quantised, steps], f"{name}_dequantised", wide, shape, axis=axis)


def channel_scales(values: Array, axis: int, largest: float) -> NDArray[np.float16]:
    """One float16 scale per channel, rounded up so that nothing is clipped; never subnormal, never 0."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    exact = np.maximum(np.abs(values).max(axis=others) / np.float32(largest), np.finfo(np.float16).tiny)
    scales = exact.astype(np.float16)
    return np.where(scales < exact, np.nextafter(scales, np.float16(np.inf)), scales)


def rounded(ratio: Array, narrow: ir.DataType) -> Array:
    """Values over their scale, float32, as the 8-bit type holds them; what is beyond it is clipped."""
    clipped = np.clip(ratio, -LARGEST[narrow], LARGEST[narrow])
    return (np.rint(clipped) if narrow == ir.DataType.INT8 else clipped).astype(narrow.numpy())
