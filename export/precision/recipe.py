"""What the precisions are: the type of the graph, the type of its large weights, and how far a stage may stray."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UserError

_FLOAT16, _BFLOAT16, _INT8, _FLOAT8E4M3FN = 10, 16, 3, 17
"""Numbers of ``onnx.TensorProto``, which never change: to know the rules, onnx need not be imported."""
RECIPE_VERSION = 1
"""Of the rules in this folder; variants written by other rules are written anew."""


@dataclass(frozen=True)
class Recipe:
    """One precision."""

    name: str
    activations: int
    """ONNX element type of activations, and of the weights that are not quantised."""
    weights: int | None = None
    """ONNX element type of the weights of products, behind a DequantizeLinear; None: as the activations."""
    limit: float | None = None
    """Largest relative L2 of a stage to its float32 graph; None: measured and recorded only."""


_RECIPES = (
    Recipe("fp16", _FLOAT16, limit=5e-3),
    Recipe("bf16", _BFLOAT16),
    Recipe("int8", _FLOAT16, weights=_INT8),
    Recipe("fp8", _FLOAT16, weights=_FLOAT8E4M3FN),
)
PRECISIONS = tuple(recipe.name for recipe in _RECIPES)


def recipe(precision: str) -> Recipe:
    """The recipe of a precision's name.

    Raises:
        UserError: there is none; float32 is the bundle itself.
    """
    for entry in _RECIPES:
        if entry.name == precision:
            return entry
    raise UserError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)} (fp32 is the bundle as exported).")
