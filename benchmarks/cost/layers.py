"""A layer as an engine's profile names it: some nodes of the graph in one kernel."""

from __future__ import annotations

import re

from ...errors import UserError
from .flops import node_flops
from .fusion import elements_read, is_window
from .graph_shapes import Graph
from .kinds import ANCHORS, node_kind
from .stage_costs import Work


def layer_work(graph: Graph, layer: str) -> Work:
    """FLOPs and traffic of the nodes that a layer's name lists, fused: what passes between them is not counted.

    Args:
        layer: any text with the nodes' own names in it, such as ``node_conv2d_3 + node_silu_1``.

    Raises:
        UserError: no node of the graph is named.
    """
    words = set(re.findall(r"[^\s,+()\[\]{}]+", layer))
    nodes = [node for node in graph.nodes if node.name in words and graph.floats(node.outputs)]
    if not nodes:
        raise UserError(f"layer {layer[:60]!r} names no node of this graph: give the --bundle it was built from.")
    inside = {node.name for node in nodes}
    made = {name for node in nodes for name in node.outputs}
    reads: dict[str, int] = {}
    weights: dict[str, int] = {}
    for node in nodes:
        for name in graph.floats(node.inputs):
            if name not in made:
                target = weights if name in graph.weights else reads
                target[name] = max(target.get(name, 0), elements_read(graph, node, name))
    leaving = {
        name
        for name in made
        if name in graph.outputs or any(node.name not in inside for node in graph.consumers.get(name, []))
    }
    anchors = [node for node in nodes if node.op in ANCHORS] or [node for node in nodes if not is_window(graph, node)]
    main = max(anchors or nodes, key=lambda node: node_flops(graph, node))
    written = sum(graph.tensors[name].size for name in graph.floats(tuple(sorted(leaving))))
    flops = sum(node_flops(graph, node) for node in nodes)
    return Work(node_kind(graph, main), flops, sum(weights.values()), sum(reads.values()), written)
