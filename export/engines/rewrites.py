"""The forms that an engine is built from: what the export writes, rewritten for the kernels that the builder makes."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from .flat_tokens import flatten_tokens
from .temporal_norms import normalise_clips
from .token_order import order_tokens


def rewrite(model: bytes) -> tuple[bytes, frozenset[str]]:
    """A serialised graph with the same outputs that moves fewer bytes in fewer kernels.

    Args:
        model: without the weights, which stay where they are.

    Returns:
        The graph, and the names of the attentions that became part of another one.
    """
    parsed = ir.from_proto(onnx.load_model_from_string(model))
    normalise_clips(parsed.graph)
    joined = order_tokens(parsed.graph)
    RemoveUnusedNodesPass()(parsed)
    flatten_tokens(parsed.graph)
    RemoveUnusedNodesPass()(parsed)
    return ir.to_proto(parsed).SerializeToString(), joined
