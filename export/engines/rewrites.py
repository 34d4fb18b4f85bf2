"""The forms that an engine is built from: what the export writes, rewritten for the kernels that the builder makes.

A change of these forms counts up ``FORM`` in :mod:`.job`, so that builds replace the engines of the former form.
"""

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
        The graph, the given bytes where there is nothing to rewrite, and the names of the attentions that became part
        of another one.
    """
    parsed = ir.from_proto(onnx.load_model_from_string(model))
    norms = normalise_clips(parsed.graph)
    order = order_tokens(parsed.graph)
    RemoveUnusedNodesPass()(parsed)
    products = flatten_tokens(parsed.graph)
    RemoveUnusedNodesPass()(parsed)
    if not (norms or order.transformers or products):
        return model, frozenset()
    return ir.to_proto(parsed).SerializeToString(), order.joined
