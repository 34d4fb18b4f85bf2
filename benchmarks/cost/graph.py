"""An ONNX graph with every shape known; of each node its FLOPs, and what it is to a reader of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...runtime.install import install_hint

# Names of onnx_ir, which the plain install lacks.
Graph = Any
Node = Any
Value = Any

CONV_3X3, CONV_1X1, TEMPORAL_CONV, RESAMPLING = "conv 3x3", "conv 1x1", "temporal conv", "resampling conv"
LINEAR, FEED_FORWARD, ATTENTION_PROJECTION = "linear", "feed-forward", "attention projection"
EMBEDDING = "time embedding"
SELF_ATTENTION, TEMPORAL_ATTENTION, TEXT_ATTENTION = "self-attention", "temporal attention", "text attention"
NORMALISATION, ELEMENT_WISE, MOVEMENT = "normalisation", "element-wise", "movement"
KINDS = (
    *(CONV_3X3, CONV_1X1, TEMPORAL_CONV, RESAMPLING, LINEAR, FEED_FORWARD, ATTENTION_PROJECTION, EMBEDDING),
    *(SELF_ATTENTION, TEMPORAL_ATTENTION, TEXT_ATTENTION, NORMALISATION, ELEMENT_WISE, MOVEMENT),
)

# Parts of module paths (diffusers, transformers and ConsistI2V names) -> kind.
_PATHS = {
    **dict.fromkeys(("time_embedding", "time_emb_proj", "frame_stride_embedding"), EMBEDDING),
    "conv3ds": TEMPORAL_CONV,
    **dict.fromkeys(("downsamplers", "upsamplers"), RESAMPLING),
    "conv_shortcut": CONV_1X1,
    **dict.fromkeys(("ff", "mlp"), FEED_FORWARD),
    **dict.fromkeys(("to_q", "to_k", "to_v", "to_out", "q_proj", "k_proj", "v_proj", "out_proj"), ATTENTION_PROJECTION),
}
_NORMS = {"GroupNormalization", "LayerNormalization", "InstanceNormalization", "RMSNormalization", "Softmax"}
_PRODUCTS = {"Conv", "ConvTranspose", "MatMul", "Gemm", "Attention"}
ANCHORS = _PRODUCTS | _NORMS
"""Operations that an engine runs as a kernel of their own; the others can join a neighbour."""
RESHAPES = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
"""Operations that move nothing."""
_MOVEMENT = {
    *RESHAPES,
    *("Transpose", "Concat", "Split", "Slice", "Gather", "Expand", "Pad", "DepthToSpace", "SpaceToDepth", "Resize"),
    *("Tile", "GatherElements", "GatherND", "ScatterND"),
}


def read_graph(path: Path, rows: int = 1) -> Graph:
    """Read a graph of fixed size as an ``onnx_ir.Graph`` and complete its shapes; external data is not touched.

    Args:
        path: the ONNX file.
        rows: batch to count where the graph leaves it open; of frames that are decoded at once, one is counted.

    Raises:
        UserError: the onnx-ir package is missing, the file is no ONNX graph, or a shape stays unknown, as in
            graphs of dynamic size.
    """
    try:
        import onnx_ir
        from onnx_ir.passes.common import ShapeInferencePass
    except ImportError:
        raise UserError(f"counting a graph needs onnx-ir: {install_hint('bench')}.") from None
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx_ir.load(path)
    except (OSError, DecodeError) as error:
        raise UserError(f"{path} is not a readable ONNX file ({error}): export the bundle again.") from None

    def unknown() -> list[Value]:
        """Outputs of nodes without a shape in numbers; an open batch gets its size on the way."""
        values = [value for node in model.graph for value in node.outputs if value.name]
        for value in (*model.graph.inputs, *values):
            if value.shape is not None:
                value.shape = onnx_ir.Shape([_fixed(size, {"rows": rows, "frames": 1}) for size in value.shape])
        return [value for value in values if value.shape is None or not value.shape.is_static()]

    if unknown():
        model = ShapeInferencePass(strict_mode=False)(model).model
    if left := unknown():
        raise UserError(
            f"{path.name}: the shape of {left[0].name!r} (and {len(left) - 1} more) is not known: "
            "export the bundle without --dynamic."
        )
    return model.graph


def _fixed(size: Any, batches: Mapping[str, int]) -> Any:
    """A size in numbers, where it is open as ``rows`` or ``frames`` or as what depends on one of them, ``16*rows``."""
    factors = [] if isinstance(size, int) else str(size.value).split("*")
    named = [factor for factor in factors if not factor.isdigit()]
    if len(named) != 1 or named[0] not in batches:
        return size
    return prod(batches.get(factor) or int(factor) for factor in factors)


def shape(value: Value) -> tuple[int, ...]:
    """Sizes of a value; none of an absent optional input."""
    return () if value is None else value.shape.numpy()


def size(value: Value) -> int:
    """Elements of a value."""
    return prod(shape(value))


def floats(values: Iterable[Value]) -> list[Value]:
    """Those that hold floating-point numbers, each once; integers are indices and shapes."""
    return [
        value for value in dict.fromkeys(values) if value is not None and value.name and value.dtype.is_floating_point()
    ]


def node_flops(node: Node) -> int:
    """Twice the multiply-adds of matrix products, convolutions and attention, as torch's ``FlopCounterMode`` counts
    them; everything else counts nothing. Padding is counted like any other value.
    """
    shapes = [shape(value) for value in (*node.inputs, *node.outputs)]
    if node.op_type in ("Conv", "ConvTranspose"):
        # Of a convolution every output takes, of a transposed one every input gives, one kernel's worth.
        positions = shapes[-1] if node.op_type == "Conv" else shapes[0]
        return 2 * prod(positions) * prod(shapes[1][1:])
    if node.op_type == "MatMul":
        return 2 * prod(shapes[-1]) * shapes[0][-1]
    if node.op_type == "Gemm":
        return 2 * prod(shapes[-1]) * shapes[0][0 if node.attributes.get_int("transA", 0) else 1]
    if node.op_type == "Attention":
        query, key, value = shapes[:3]
        if len(query) == 4:
            batch, heads, length, head_size = query
            return 2 * batch * heads * length * key[2] * (head_size + value[3])
        # Joined heads: [batch, length, heads * head size]; grouped queries use every query head.
        groups = node.attributes.get_int("q_num_heads") // node.attributes.get_int("kv_num_heads")
        return 2 * query[0] * query[1] * key[1] * (query[2] + value[2] * groups)
    return 0


def node_kind(node: Node) -> str:
    """One of :data:`KINDS`: from the module path in its weight's name, else from type and shape."""
    if node.op_type in _NORMS:
        return NORMALISATION
    if node.op_type == "Attention":
        return _attention_kind(node)
    if node.op_type not in _PRODUCTS:
        return MOVEMENT if node.op_type in _MOVEMENT else ELEMENT_WISE
    weights = [value.name for value in node.inputs[:2] if value is not None and value.is_initializer()]
    # Biases are not asked: equal ones (zeros) are stored once, under one layer's name.
    for part in (part for name in (node.name, *weights) for part in name.replace("/", ".").split(".")):
        if part in _PATHS:
            return _PATHS[part]
    if node.op_type in ("Conv", "ConvTranspose"):
        return _conv_kind(node)
    if not weights:
        return SELF_ATTENTION
    if size(node.outputs[0]) == shape(node.outputs[0])[-1]:
        return EMBEDDING
    near = {*_reached(node, forward=True), *_reached(node, forward=False)}
    if near & {"Attention", ".key", ".value"}:
        return ATTENTION_PROJECTION
    return FEED_FORWARD if near & {"Gelu", "QuickGelu"} else LINEAR


def _conv_kind(node: Node) -> str:
    kernel = shape(node.inputs[1])[2:]
    if kernel[0] > 1 and set(kernel[1:]) == {1}:
        return TEMPORAL_CONV
    if set(kernel) == {1}:
        return CONV_1X1
    # The 3x3 convolution after nearest upsampling runs as four 2x2 ones on the small map.
    strided = max(node.attributes.get_ints("strides", [1])) > 1
    return RESAMPLING if node.op_type == "ConvTranspose" or strided or set(kernel) == {2} else CONV_3X3


def _reached(start: Node, forward: bool) -> Iterator[str]:
    """Types of the nodes that lie before or after `start` with no product or norm between, and the last part of the
    names of graph outputs among them.
    """
    values, seen = list(start.outputs if forward else start.inputs[:1]), set()
    while values:
        value = values.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        if forward and value.is_graph_output() and "." in value.name:
            yield "." + value.name.rsplit(".", 1)[1]
        for node in value.consumers() if forward else filter(None, [value.producer()]):
            yield node.op_type
            if node.op_type not in ANCHORS:
                values += node.outputs if forward else node.inputs


def _attention_kind(node: Node) -> str:
    """Text attention reads keys made outside the graph; temporal attention has one query per frame of a clip."""
    key = node.inputs[1]
    while (producer := key.producer()) is not None and producer.op_type not in ANCHORS:
        key = producer.inputs[0]
    if key.is_graph_input():
        return TEXT_ATTENTION
    clip = next((shape(value) for value in node.graph.inputs if value.name == "sample"), ())
    if len(clip) == 5:
        rows, frames = clip[0], clip[2] + 1
        batch, *_, length, _ = shape(node.inputs[0])
        # A spatial map may have as many positions as the clip has frames; its batch is the frames.
        if length == frames and batch not in (rows, rows * (frames - 1)):
            return TEMPORAL_ATTENTION
    return SELF_ATTENTION
