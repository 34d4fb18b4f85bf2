"""Which attentions must become one kernel, and which may be taken apart.

TensorRT never takes an Attention operator apart unless it is told that it may: where the target has no fused kernel for
it, the build fails. So a build that succeeds is the proof that every attention is fused, but for those named here.
"""

from __future__ import annotations

from collections.abc import Iterator
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


def settle_attentions(library: TensorRT, network: Network) -> Attentions:
    """Allow decomposition exactly where no fused kernel can be."""
    fused: list[str] = []
    decomposed: list[Decomposed] = []
    for layer in _attention_inputs(library, network):
        attention = layer.attention
        reason = _why_not_fused(library, layer)
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


def _why_not_fused(library: TensorRT, layer: _AttentionLayer) -> str | None:
    query = layer.get_input(0)
    assert query is not None
    types = library.DataType
    if query.dtype not in (types.HALF, types.BF16):
        return f"no fused kernel takes {query.dtype.name.lower()}"
    size = query.shape[-1]
    if not SMALLEST_HEAD <= size <= LARGEST_HEAD or size % HEAD_STEP:
        return f"no fused kernel takes head size {size}"
    return None
