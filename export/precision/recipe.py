"""What the precisions are, how their graphs are made and checked, and whether those of a bundle are what would be
written: judged by their record, with no graph read. onnx is not needed to know it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.manifest import Manifest
from ...runtime.bundle.stage_graphs import graph_files
from ...runtime.files.guarded_read import LOSSES, read_json

if TYPE_CHECKING:
    from .calibration_set import CalibrationSet

_FLOAT16, _BFLOAT16, _INT8, _FLOAT8E4M3FN = 10, 16, 3, 17
"""Numbers of ``onnx.TensorProto``, which never change."""
RECIPE_VERSION = 1
"""Of the rules in this folder; variants written by other rules are written anew."""
CALIBRATED_STAGE = "unet"
"""Nearly all of the work; the other stages run once and keep their activations in half precision."""
ACCUMULATED = "fp16"
"""The precision that is checked with float16 accumulators too: other types have none, or no limit."""
LOSSES_FILE = "losses.json"


def has_fused_kernel(head_size: int) -> bool:
    """Whether TensorRT for RTX has a half-precision attention kernel: found by building for compute capability 8.9."""
    return 16 <= head_size <= 256 and head_size % 8 == 0


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


RECIPES = {
    "fp16": Recipe("fp16", _FLOAT16, limit=5e-3),
    "bf16": Recipe("bf16", _BFLOAT16),
    "int8": Recipe("int8", _FLOAT16, weights=_INT8),
    "fp8": Recipe("fp8", _FLOAT16, weights=_FLOAT8E4M3FN),
}


@dataclass(frozen=True)
class VariantOptions:
    """How a variant is made and checked."""

    calibration: CalibrationSet | None = None
    """Put the U-Net's activations into 8 bits too, by their ranges on these photos; None: keep them as they are in the
    bundle, weights alone in 8 bits where there are none yet."""
    weight_only: bool = False
    """Take the activations out of their 8 bits again."""
    max_loss: float | None = None
    """Largest relative L2 of a stage. Of a calibrated stage as many activations are in 8 bits as keep it; None: all."""
    quick_check: bool = False
    """Check each stage on one seed and its smallest batch alone: three seeds of three batches of the published size
    take half an hour. The record says which were run."""


def variant_rules(precision: str, stages: Sequence[str], options: VariantOptions) -> Recipe:
    """The rules of a precision, with the loss that is allowed.

    Raises:
        UserError: unknown precision (float32 is the bundle itself), or options that do not go with it.
    """
    if precision not in RECIPES:
        raise UserError(f"precision {precision!r} is not one of {', '.join(RECIPES)} (fp32 is the bundle as exported).")
    rules = RECIPES[precision]
    if options.calibration is not None and rules.weights is None:
        raise UserError(f"calibration is for activations in 8 bits, not for {rules.name}: choose int8 or fp8.")
    if options.calibration is not None and CALIBRATED_STAGE not in stages:
        raise UserError(f"calibration is of stage {CALIBRATED_STAGE}: name it too, or leave the calibration out.")
    if options.max_loss is None:
        return rules
    if not 0 < options.max_loss < 1:
        raise UserError(f"the largest loss is a relative L2 between 0 and 1, not {options.max_loss}: give 0.02 or so.")
    return replace(rules, limit=options.max_loss)


def variant_is_current(bundle: Bundle, precision: str, stages: Sequence[str], options: VariantOptions) -> bool:
    """Whether every stage is there in this precision, whole, and as it would be written."""
    rules = variant_rules(precision, stages, options)
    held = bundle.manifest.variants.get(precision, {})
    entries = recorded(bundle, precision)
    if not all(
        stage in entries and is_current(entries[stage], bundle.manifest, stage, rules, options) for stage in stages
    ):
        return False
    names = [f"variants/{precision}/{LOSSES_FILE}", *(name for stage in stages for name in graph_files(held[stage]))]
    return all(bundle.fault(name, hashed=True) is None for name in names if name in bundle.manifest.files)


def float16_accumulators(present: dict[str, Any], limit: float | None) -> str | None:
    """What products that accumulate in float16 cost a stage, in words without their end; None: it is within the limit,
    or not known.
    """
    loss = present.get("fp16_accumulators")
    if loss is None or limit is None or (loss["relative_l2"] is not None and loss["relative_l2"] <= limit):
        return None
    lost = "overflows" if loss["relative_l2"] is None else f"loses {loss['relative_l2']:.1e} relative L2"
    return f"{lost} (allowed {limit:.0e}) where its products accumulate in float16"


def is_current(present: dict[str, Any], manifest: Manifest, stage: str, rules: Recipe, options: VariantOptions) -> bool:
    """Whether what is recorded of a stage is what would be written."""
    source = present["source"]
    if {name: source[name] for name in ("recipe", "sha256")} != source_of(manifest, stage):
        return False
    if rules.name == ACCUMULATED and "fp16_accumulators" not in present:
        return False  # of a version that did not check it
    if (source.get("quick_check", False) and not options.quick_check) or (
        rules.limit is not None and max(loss["relative_l2"] for loss in present["losses"]) > rules.limit
    ):
        return False
    held, asked = source.get("calibration"), options.calibration
    if stage != CALIBRATED_STAGE or (asked is None and not options.weight_only):
        return True
    if asked is None or held is None:
        return asked is None and held is None
    return bool(held == asdict(asked.spec) and source.get("max_loss") == options.max_loss)


def source_of(manifest: Manifest, stage: str) -> dict[str, Any]:
    """What a variant is made from: rules and hashes."""
    names = [name for name in graph_files(manifest.stages[stage]) if name in manifest.files]
    return {"recipe": RECIPE_VERSION, "sha256": {name: manifest.files[name].sha256 for name in names}}


def recorded(bundle: Bundle, precision: str) -> dict[str, dict[str, Any]]:
    """stage -> entry of ``losses.json``, for the stages that the manifest has in this precision; none where the file
    cannot be read, so that they are written anew.
    """
    held = bundle.manifest.variants.get(precision, {})
    name = f"variants/{precision}/{LOSSES_FILE}"
    if not held or name not in bundle.manifest.files:
        return {}
    try:
        entries = read_json(bundle.file(name), LOSSES)["stages"]
        return {stage: dict(entries[stage]) for stage in held if stage in entries}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
