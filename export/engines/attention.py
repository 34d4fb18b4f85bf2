"""Which attentions must become one kernel, and which may be decomposed.

TensorRT decomposes an Attention operator only where it is marked decomposable; otherwise the build fails if the target
has no fused kernel for it. So a successful build proves that every attention is fused, except those named here.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..precision.recipe import has_fused_kernel


def settle_attentions(library: Any, network: Any, smallest_batch: int = 1) -> dict[str, Any]:
    """Allow decomposition exactly where no fused kernel can be.

    Args:
        library: tensorrt_rtx or tensorrt.
        network: parsed, its sizes set.
        smallest_batch: of all profiles, where the network's batch is open.

    Returns:
        "fused": names, each of which is one kernel or the build fails, with HALF or BF16 for each in "types";
        "decomposed": name and reason of each other.
    """
    attentions: dict[str, Any] = {"fused": [], "decomposed": [], "types": {}}
    given = {network.get_input(index).name for index in range(network.num_inputs)}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type != library.LayerType.ATTENTION_INPUT:
            continue
        # The bindings hand out plain layers; this is their way to the derived class.
        layer.__class__ = library.IAttentionInputLayer
        reason = _why_not_fused(library, layer, given, smallest_batch)
        if reason is None:
            attentions["fused"].append(layer.attention.name)
            attentions["types"][layer.attention.name] = layer.get_input(0).dtype.name
        else:
            layer.attention.decomposable = True
            attentions["decomposed"].append({"name": layer.attention.name, "reason": reason})
    return attentions


def _why_not_fused(library: Any, layer: Any, given: Collection[str], smallest_batch: int) -> str | None:
    """None where it must fuse. `given`: names of the network's inputs."""
    query, value = layer.get_input(0), layer.get_input(2)
    if query.dtype not in (library.DataType.HALF, library.DataType.BF16):
        return f"no fused kernel takes {query.dtype.name.lower()}"
    if not has_fused_kernel(query.shape[-1]):
        return f"no fused kernel takes head size {query.shape[-1]}"
    # The text's keys and values at a level of one head; those that are computed from the same rows fuse there too. By
    # the values, since the parser scales the keys.
    batch = smallest_batch if query.shape[0] < 0 else query.shape[0]
    if batch * query.shape[1] == 1 and value.name in given:
        return "no fused kernel takes given keys and values for one head of one row"
    # The VAE's at an open size, found as the head sizes were: two heads, two rows or an open batch do fuse.
    if (query.shape[0], query.shape[1]) == (1, 1) and min(query.shape[2], value.shape[2]) < 0:
        return "no fused kernel takes one head of one row of open length"
    return None
