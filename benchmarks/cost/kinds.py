"""What a node is to a reader of the model: from the module path in its weight's name, else from type and shape."""

from __future__ import annotations

from collections.abc import Iterator

from .graph_shapes import Graph, Node

CONV_3X3 = "conv 3x3"
CONV_1X1 = "conv 1x1"
TEMPORAL_CONV = "temporal conv"
RESAMPLING = "resampling conv"
LINEAR = "linear"
FEED_FORWARD = "feed-forward"
ATTENTION_PROJECTION = "attention projection"
EMBEDDING = "time embedding"
SELF_ATTENTION = "self-attention"
TEMPORAL_ATTENTION = "temporal attention"
TEXT_ATTENTION = "text attention"
NORMALISATION = "normalisation"
ELEMENT_WISE = "element-wise"
MOVEMENT = "movement"

KINDS = (
    CONV_3X3,
    CONV_1X1,
    TEMPORAL_CONV,
    RESAMPLING,
    LINEAR,
    FEED_FORWARD,
    ATTENTION_PROJECTION,
    EMBEDDING,
    SELF_ATTENTION,
    TEMPORAL_ATTENTION,
    TEXT_ATTENTION,
    NORMALISATION,
    ELEMENT_WISE,
    MOVEMENT,
)

# Parts of module paths (diffusers, transformers and ConsistI2V names) -> kind.
_PATHS = {
    "time_embedding": EMBEDDING,
    "time_emb_proj": EMBEDDING,
    "frame_stride_embedding": EMBEDDING,
    "conv3ds": TEMPORAL_CONV,
    "downsamplers": RESAMPLING,
    "upsamplers": RESAMPLING,
    "conv_shortcut": CONV_1X1,
    "ff": FEED_FORWARD,
    "mlp": FEED_FORWARD,
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


def node_kind(graph: Graph, node: Node) -> str:
    """One of :data:`KINDS`."""
    if node.op in _NORMS:
        return NORMALISATION
    if node.op == "Attention":
        return _attention_kind(graph, node)
    if node.op not in _PRODUCTS:
        return MOVEMENT if node.op in _MOVEMENT else ELEMENT_WISE
    # Biases are not asked: equal ones (zeros) are stored once, under one layer's name.
    names = (node.name, *(name for name in node.inputs[:2] if name in graph.weights))
    for part in (part for name in names for part in name.replace("/", ".").split(".")):
        if part in _PATHS:
            return _PATHS[part]
    return _conv_kind(graph, node) if node.op in ("Conv", "ConvTranspose") else _product_kind(graph, node)


def _conv_kind(graph: Graph, node: Node) -> str:
    kernel = graph.tensors[node.inputs[1]].shape[2:]
    if kernel[0] > 1 and set(kernel[1:]) == {1}:
        return TEMPORAL_CONV
    if set(kernel) == {1}:
        return CONV_1X1
    # The 3x3 convolution after nearest upsampling runs as four 2x2 ones on the small map.
    resampling = node.op == "ConvTranspose" or max(node.attributes.get("strides", [1])) > 1 or set(kernel) == {2}
    return RESAMPLING if resampling else CONV_3X3


def _product_kind(graph: Graph, node: Node) -> str:
    if not any(name in graph.weights for name in node.inputs[:2]):
        return SELF_ATTENTION
    output = graph.tensors[node.outputs[0]]
    if output.size == output.shape[-1]:
        return EMBEDDING
    near = {*_reached(graph, node, forward=True), *_reached(graph, node, forward=False)}
    if near & {"Attention", ".key", ".value"}:
        return ATTENTION_PROJECTION
    return FEED_FORWARD if near & {"Gelu", "QuickGelu"} else LINEAR


def _reached(graph: Graph, start: Node, forward: bool) -> Iterator[str]:
    """Types of the nodes that lie before or after `start` with no product or norm between, and the last part of the
    names of graph outputs among them.
    """
    names, seen = list(start.outputs if forward else start.inputs[:1]), set()
    while names:
        name = names.pop()
        if name in seen:
            continue
        seen.add(name)
        if forward and name in graph.outputs and "." in name:
            yield "." + name.rsplit(".", 1)[1]
        producer = graph.producers.get(name)
        neighbours = graph.consumers.get(name, []) if forward else [producer] if producer else []
        for node in neighbours:
            yield node.op
            if node.op not in ANCHORS:
                names += node.outputs if forward else node.inputs


def _attention_kind(graph: Graph, node: Node) -> str:
    """Text attention reads keys made outside the graph; temporal attention has one query per frame of a clip."""
    if _comes_from_input(graph, node.inputs[1]):
        return TEXT_ATTENTION
    clip = graph.tensors["sample"].shape if "sample" in graph.inputs else ()
    if len(clip) == 5:
        rows, frames = clip[0], clip[2] + 1
        batch, *_, length, _ = graph.tensors[node.inputs[0]].shape
        # A spatial map may have as many positions as the clip has frames; its batch is the frames.
        if length == frames and batch not in (rows, rows * (frames - 1)):
            return TEMPORAL_ATTENTION
    return SELF_ATTENTION


def _comes_from_input(graph: Graph, name: str) -> bool:
    while name in graph.producers and graph.producers[name].op not in ANCHORS:
        name = graph.producers[name].inputs[0]
    return name in graph.inputs
