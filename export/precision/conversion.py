"""One float32 graph -> one strongly typed graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...runtime.bundle.graph_source import GraphSource
from ...runtime.bundle.manifest import StageSpec, TensorSpec
from .attention import fold_attention_scales, settle_attention_forms
from .graph import Graph
from .lowering import attention_scores, lower
from .quantisation import quantise
from .recipe import Recipe


@dataclass(frozen=True)
class ConversionReport:
    """What was done to a graph."""

    scales_in_weights: int
    """Attention operands whose scale went into weights, at no cost."""
    scales_at_operands: int
    """... and those that needed a multiplication."""
    decomposed_attentions: list[str]
    """By name: those for which no fused kernel exists, written as product, float32 softmax and product."""
    quantised_weights: int
    quantised_activations: int
    float32_sums: int
    """Residual sums that stay in float32."""
    float32_scores: int
    """Attentions written as separate operations whose scores stay in float32."""


def convert(
    source: GraphSource | Path,
    target: Path,
    recipe: Recipe,
    scales: Mapping[str, float],
    *,
    wide_sums: bool = False,
    wide_scores: bool = False,
) -> tuple[ConversionReport, dict[str, str]]:
    """Write the graph `source` to the file `target` in another precision, with its weights beside it.

    `scales` are those of calibrated activations, by name, for a recipe with 8-bit weights; with `wide_sums` the
    residual sums stay in float32, with `wide_scores` the scores of decomposed attentions.

    Returns what was done, and the dtype of every input and output.

    Raises:
        UserError: a graph or a weight that the rules do not cover.
    """
    graph = Graph(source)
    folded, at_operands = fold_attention_scales(graph)
    decomposed = settle_attention_forms(graph)
    scores = len(attention_scores(graph)) if wide_scores else 0
    sums = lower(graph, recipe.activations, wide_sums=wide_sums, wide_scores=wide_scores)
    weights, activations = quantise(graph, recipe, scales)
    graph.write(target)
    types = {value.name: str(value.dtype.numpy()) for value in (*graph.body.inputs, *graph.body.outputs)}
    return ConversionReport(folded, at_operands, decomposed, weights, activations, sums, scores), types


def variant_spec(spec: StageSpec, file: str, precision: str, types: dict[str, str]) -> StageSpec:
    """The float32 stage's entry in the manifest, for a variant of it."""

    def typed(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(t.name, types.get(t.name, t.dtype), t.shape) for t in tensors)

    return StageSpec(file, precision, typed(spec.inputs), typed(spec.outputs), spec.opset)
