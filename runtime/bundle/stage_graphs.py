"""A bundle's graphs by stage and precision, and the two words every backend answers with: usable, and why."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import DerivedFileError, UserError
from .bundle import Bundle
from .manifest import STAGES, StageSpec


@dataclass(frozen=True)
class Availability:
    """Whether something can be used, and why or why not, in one sentence."""

    usable: bool
    reason: str
    failed: bool = False
    """It is installed and does not start: worth a warning where another takes its place."""


def stage_graph(bundle: Bundle, stage: str, precision: str) -> StageSpec:
    """The stage's ONNX graph in a precision; fp32 is the one every bundle has.

    Raises:
        UserError: the bundle has no such variant, or its files are missing or damaged.
    """
    manifest = bundle.manifest
    if precision == "fp32":
        return manifest.stages[stage]
    variant = manifest.variants.get(precision, {})
    if stage not in variant:
        held = ", ".join(["fp32", *(name for name, stages in manifest.variants.items() if stage in stages)])
        raise UserError(
            f"this bundle has no {precision} graph of stage {stage} (it has {held}): choose one of these, "
            f"or make it with 'consisti2v build BUNDLE --target rtx4060 --precision {precision}'."
        )
    bundle.require(graph_files(variant[stage]), f"consisti2v build BUNDLE --target TARGET --precision {precision}")
    return variant[stage]


def graph_files(graph: StageSpec) -> tuple[str, str]:
    """A graph's own file and the one of its weights, which a graph with none does not have."""
    return graph.file, graph.file + ".data"


def has_graphs(bundle: Bundle, precision: str) -> Availability:
    """Whether every stage is there as ONNX in this precision."""
    try:
        for stage in STAGES:
            stage_graph(bundle, stage, precision)
    except UserError as error:
        return Availability(False, str(error), failed=isinstance(error, DerivedFileError))
    return Availability(True, f"the bundle holds every stage as {precision} ONNX")
