"""What TensorRT and polygraphy say of the engines for this card."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.manifest import EngineSpec
from .engines import target_here

_WORDS = 200


def engines_here(bundle: Bundle, precision: str = "fp16") -> list[EngineSpec]:
    """Engines that were built for the card at hand, or the portable ones where there are none.

    Raises:
        UserError: there are none.
    """
    target = target_here(bundle)
    found = [e for e in bundle.manifest.engines if e.target == target and e.precision == precision]
    if not found:
        raise UserError(f"there is no {precision} engine for this card: see the part that builds it.")
    return found


def inspect_engines(bundle_path: Path) -> dict[str, Any]:
    """The engine inspector's layers of every stage: names, kinds and kernels.

    Raises:
        UserError: no engine for this card, or its library refuses it.
    """
    from ...runtime.commands.engine_tables import inspect_on_gpu

    bundle = Bundle.open(bundle_path, verify=False)
    return {engine.stage: layer_summary(inspect_on_gpu(bundle, engine)) for engine in engines_here(bundle)}


def layer_summary(inspector: Any) -> dict[str, Any]:
    """The inspector's JSON without its tensors: how many layers of each kind, each layer's name, kind and kernel."""
    layers = inspector["Layers"]
    # With little verbosity a layer is its name alone.
    known = [layer if isinstance(layer, dict) else {"Name": str(layer)} for layer in layers]
    keys = ("Name", "LayerType", "TacticName")
    return {
        "count": len(known),
        "kinds": dict(Counter(str(layer.get("LayerType", "unknown")) for layer in known).most_common()),
        "layers": [{key: str(layer[key])[:_WORDS] for key in keys if key in layer} for layer in known],
    }


def compare_with_onnxruntime(bundle_path: Path) -> dict[str, Any]:
    """``build --compare onnxruntime``: every stage's engine, every profile and three seeds, through polygraphy.

    A stage over the limit is said, and the others are compared.

    Raises:
        UserError: no GPU, no polygraphy, or no engine for this card.
    """
    from ...export.engines.compare import check_comparison, compare_engines

    check_comparison("onnxruntime")
    lines: list[str] = []
    over: list[str] = []
    for engine in engines_here(Bundle.open(bundle_path, verify=False)):
        try:
            for line in compare_engines(bundle_path, [engine]):
                lines.append(line)
        except UserError as refusal:
            over.append(str(refusal))
    return {"lines": lines, "over_the_limit": over}
