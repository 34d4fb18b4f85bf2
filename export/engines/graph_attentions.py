"""Attentions that a half-precision graph already spells out, because no fused kernel takes their head size."""

from __future__ import annotations

from ...runtime.bundle.graph_source import GraphSource
from .attention import Decomposed


def spelled_out(exact: GraphSource, variant: GraphSource) -> tuple[Decomposed, ...]:
    """Those of the float32 graph that the variant has as product, softmax and product; weights are not read."""
    kept = set(_attention_names(variant))
    reason = "spelled out in the graph, no fused kernel takes its head size"
    return tuple(Decomposed(name, reason) for name in _attention_names(exact) if name not in kept)


def _attention_names(source: GraphSource) -> list[str]:
    import onnx

    graph = onnx.load_model_from_string(source.model).graph
    return [node.name for node in graph.node if node.op_type == "Attention"]
