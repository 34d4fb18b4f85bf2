"""Which attentions must become one kernel, and which may be taken apart.

TensorRT never takes an Attention operator apart unless it is told that it may: where the target has no fused kernel for
it, the build fails. So a build that succeeds is the proof that every attention is fused, but for those named here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from .api import Layer, Network, TensorRT

SMALLEST_HEAD, LARGEST_HEAD, HEAD_STEP = 16, 256, 8
"""Head sizes with fused half-precision kernels, found by building for compute capability 8.9."""


@dataclass(frozen=True)
class Decomposed:
    """An attention that is built from products and a softmax."""

    name: str
    reason: str


@dataclass(frozen=True)
class Attentions:
    """What became of a network's attentions."""

    fused: tuple[str, ...]
    """By name: the build fails unless each is one kernel."""
    decomposed: tuple[Decomposed, ...]


def settle_attentions(library: TensorRT, network: Network, smallest_batch: int = 1) -> Attentions:
    """Allow decomposition exactly where no fused kernel can be.

    Args:
        smallest_batch: of all profiles, where the network's batch is open.
    """
    fused: list[str] = []
    decomposed: list[Decomposed] = []
    given = {network.get_input(index).name for index in range(network.num_inputs)}
    for layer in _attention_inputs(library, network):
        attention = layer.attention
        reason = _why_not_fused(library, layer, given, smallest_batch)
        if reason is None:
            fused.append(attention.name)
        else:
            attention.decomposable = True
            decomposed.append(Decomposed(attention.name, reason))
    return Attentions(tuple(fused), tuple(decomposed))


class _AttentionLayer(Layer):
    """What a layer is once it is seen as an attention."""

    attention: _Attention


class _Attention:
    name: str
    decomposable: bool


def _attention_inputs(library: TensorRT, network: Network) -> Iterator[_AttentionLayer]:
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == library.LayerType.ATTENTION_INPUT:
            # The bindings hand out plain layers; this is their way to the derived class.
            layer.__class__ = library.IAttentionInputLayer
            yield layer  # type: ignore[misc]


def _why_not_fused(
    library: TensorRT, layer: _AttentionLayer, given: Collection[str], smallest_batch: int
) -> str | None:
    """None where it must fuse. `given`: names of the network's inputs."""
    query, value = layer.get_input(0), layer.get_input(2)
    assert query is not None and value is not None
    types = library.DataType
    if query.dtype not in (types.HALF, types.BF16):
        return f"no fused kernel takes {query.dtype.name.lower()}"
    size = query.shape[-1]
    if not SMALLEST_HEAD <= size <= LARGEST_HEAD or size % HEAD_STEP:
        return f"no fused kernel takes head size {size}"
    # The text's keys and values at a level of one head; those that are computed from the same rows fuse there too. By
    # the values, since the parser scales the keys.
    batch = smallest_batch if query.shape[0] < 0 else query.shape[0]
    if batch * query.shape[1] == 1 and value.name in given:
        return "no fused kernel takes given keys and values for one head of one row"
    # The VAE's at an open size, found as the head sizes were: two heads, two rows or an open batch do fuse.
    if (query.shape[0], query.shape[1]) == (1, 1) and min(query.shape[2], value.shape[2]) < 0:
        return "no fused kernel takes one head of one row of open length"
    return None
