"""One float32 graph -> one strongly typed graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnx import TensorProto

from ...runtime.manifest import StageSpec, TensorSpec
from .attention_form import settle_attention_forms
from .attention_scale import fold_attention_scales
from .graph import Graph
from .lowering import lower
from .quantisation import quantise_weights
from .recipe import Recipe

DTYPES = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}


@dataclass(frozen=True)
class ConversionFacts:
    """What was done to a graph."""

    scales_in_weights: int
    """Attention operands whose scale went into weights, at no cost."""
    scales_at_operands: int
    """... and those that needed a multiplication."""
    decomposed_attentions: list[str]
    """By name: those for which no fused kernel exists, written as product, float32 softmax and product."""
    quantised_weights: int


def convert(source: Path, target: Path, recipe: Recipe) -> tuple[ConversionFacts, dict[str, str]]:
    """Write the graph at `source` to `target` in another precision; weights beside each.

    Returns what was done, and the dtype of every input and output.

    Raises:
        UserError: a graph or a weight that the rules do not cover.
    """
    graph = Graph(source)
    scales = fold_attention_scales(graph)
    decomposed = settle_attention_forms(graph)
    lower(graph, recipe.activations)
    quantised = 0
    if recipe.weights is not None:
        quantised = quantise_weights(graph, recipe.activations, recipe.weights)
    graph.write(target)
    types = {name: DTYPES[kind] for name, kind in (graph.inputs | graph.outputs).items() if kind in DTYPES}
    return ConversionFacts(scales.in_weights, scales.at_operand, decomposed, quantised), types


def variant_spec(spec: StageSpec, file: str, precision: str, types: dict[str, str]) -> StageSpec:
    """The float32 stage's entry in the manifest, for a variant of it."""

    def typed(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(t.name, types.get(t.name, t.dtype), t.shape) for t in tensors)

    return StageSpec(file, precision, typed(spec.inputs), typed(spec.outputs), spec.opset)
