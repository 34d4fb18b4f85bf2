"""Attentions that a half-precision graph already spells out, because no fused kernel takes their head size."""

from __future__ import annotations

from pathlib import Path

from .attention import Decomposed


def spelled_out(exact: Path, variant: Path) -> tuple[Decomposed, ...]:
    """Those of the float32 graph that the variant has as product, softmax and product; weights are not read."""
    kept = set(_attention_names(variant))
    reason = "spelled out in the graph, no fused kernel takes its head size"
    return tuple(Decomposed(name, reason) for name in _attention_names(exact) if name not in kept)


def _attention_names(path: Path) -> list[str]:
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    return [node.name for node in graph.node if node.op_type == "Attention"]
