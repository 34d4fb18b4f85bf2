"""Group normalisation between temporal convolutions, in the layout of the convolutions.

The builder has a kernel for group normalisation of images, and copies what it normalises from images [frames,
channels, ...] to clips [channels, frames, positions] and back, although no number moves in memory (read from plans for
compute capability 8.9). Written as sums and products on clips the normalisation is two kernels, of which the first
only reads, and the copies go.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from .new_nodes import NewNodes

_CLIP = (0, 2, 1, 3)
"""[branches, frames, channels, positions] to [branches, channels, frames, positions], and back."""


def normalise_clips(graph: ir.Graph) -> int:
    """Rewrite, in place, every group normalisation whose result goes through a SiLU into a temporal convolution.

    Sums are of float32 numbers; the variance is the mean of the squares less the square of the mean. For a mean of r
    standard deviations that costs about 2**-24 r**2 of the variance. Rounding the input to half precision has cost
    2**-11 r of a standard deviation before, which is more for every r below 2**13.

    Args:
        graph: its values have shapes; at most the number of branches is open.

    Returns:
        How many were rewritten.
    """
    found = [one for node in graph if (one := _find(node)) is not None]
    for one in found:
        _rewrite(graph, one)
    return len(found)


@dataclass(frozen=True)
class _Norm:
    node: ir.Node
    convolution: ir.Node


def _find(node: ir.Node) -> _Norm | None:
    if node.op_type != "GroupNormalization":
        return None
    readers = {reader.op_type: reader for reader, _ in node.outputs[0].uses()}
    if set(readers) != {"Sigmoid", "Mul"} or readers["Sigmoid"].outputs[0] not in readers["Mul"].inputs:
        return None
    clip = _next(_next(readers["Mul"], "Reshape"), "Transpose")
    convolution = _next(clip, "Conv")
    if clip is None or convolution is None or tuple(clip.attributes.get_ints("perm", ())) != _CLIP:
        return None
    sizes = clip.outputs[0].shape
    settled = sizes is not None and len(sizes) == 4 and all(isinstance(size, int) for size in sizes[1:])
    return _Norm(node, convolution) if settled else None


def _next(node: ir.Node | None, kind: str) -> ir.Node | None:
    """The only reader of a node's output, if it is of a kind."""
    readers = [reader for reader, _ in node.outputs[0].uses()] if node is not None else []
    return readers[0] if len(readers) == 1 and readers[0].op_type == kind else None


def _rewrite(graph: ir.Graph, norm: _Norm) -> None:
    nodes = NewNodes(graph, norm.convolution)
    _, channels, frames, positions = norm.convolution.inputs[0].shape
    groups, epsilon = norm.node.attributes.get_int("num_groups"), norm.node.attributes.get_float("epsilon", 1e-5)
    x, weight, bias = norm.node.inputs
    clip = _as_clip(x)
    if clip is None:
        clip = nodes.transpose(nodes.reshape(x, [None, frames, channels, positions]), _CLIP)
    parts = [groups, channels // groups]
    sums = [None, groups, 1, frames, 1]

    def wide(value: ir.Value) -> ir.Value:
        return nodes.add("Cast", [value], value.shape, to=ir.DataType.FLOAT)

    def mean(value: ir.Value) -> ir.Value:
        return nodes.add("ReduceMean", [value, nodes.integers([2, 4])], sums, keepdims=1)

    def product(one: ir.Value, other: ir.Value, sizes: list[int | None]) -> ir.Value:
        return nodes.add("Mul", [one, other], sizes)

    def by_channel(value: ir.Value) -> ir.Value:
        return nodes.reshape(value, [None, channels, frames, 1])

    grouped = wide(nodes.reshape(clip, [None, *parts, frames, positions]))
    average = mean(grouped)
    squares = mean(product(grouped, grouped, [None, *parts, frames, positions]))
    # Rounding can leave less than nothing.
    variance = nodes.add("Relu", [nodes.add("Sub", [squares, product(average, average, sums)], sums)], sums)
    deviation = nodes.add("Sqrt", [nodes.add("Add", [variance, nodes.real(epsilon)], sums)], sums)
    weights, biases = (wide(nodes.reshape(one, [1, *parts, 1, 1])) for one in (weight, bias))
    each = [None, *parts, frames, 1]
    scale = nodes.add("Div", [weights, deviation], each)
    shift = nodes.add("Sub", [biases, product(average, scale, each)], each)
    # A cast of its own: what is read twice in float32 would be written in float32.
    scaled = product(wide(clip), by_channel(scale), [*clip.shape])
    shifted = nodes.add("Add", [scaled, by_channel(shift)], clip.shape)
    result = nodes.add("Cast", [shifted], clip.shape, to=clip.dtype)
    activated = product(result, nodes.add("Sigmoid", [result], clip.shape), [*clip.shape])
    norm.convolution.replace_input_with(0, activated)


def _as_clip(image: ir.Value) -> ir.Value | None:
    """The clip that an image was made of."""
    reshape = image.producer()
    turned = reshape.inputs[0].producer() if reshape is not None and reshape.op_type == "Reshape" else None
    if turned is None or turned.op_type != "Transpose" or tuple(turned.attributes.get_ints("perm", ())) != _CLIP:
        return None
    return turned.inputs[0]
