"""Engines, variants and kernels whose files are lost or damaged: out of the manifest, so that they are made again."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from ..errors import UserError
from ..runtime.bundle.bundle import Bundle
from ..runtime.bundle.manifest import Manifest, StageSpec
from ..runtime.bundle.stage_graphs import graph_files
from .manifest_file import rewrite_manifest


def drop_lost(bundle: Bundle, lost: dict[str, str], on_notice: Callable[[str], None]) -> Bundle:
    """The bundle without what needs its lost files; what is left of them is removed. Call it within a build.

    Args:
        bundle: as it is now.
        lost: from :meth:`Bundle.lost_files`.
        on_notice: told what was dropped, in one line.

    Raises:
        UserError: the manifest cannot be written.
    """
    if not lost:
        return bundle
    before = bundle.manifest
    after = rewrite_manifest(bundle.path.resolve(), lambda manifest: without_files(manifest, lost))
    try:
        for name in before.files.keys() - after.files.keys():
            if bundle.file(name).is_file():
                bundle.file(name).unlink()
    except OSError as error:
        raise UserError(f"{error.filename} cannot be removed ({error.strerror}): check its permissions.") from None
    first, fault = next(iter(lost.items()))
    more = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
    on_notice(f"out of the manifest, lost or damaged: {first} ({fault}){more}{_calibrations(before, after)}")
    return Bundle(bundle.path, after)


def without_files(manifest: Manifest, lost: Collection[str]) -> Manifest:
    """The manifest without these files and what cannot be used without them; an engine can without its facts."""
    variants = {
        precision: {stage: graph for stage, graph in stages.items() if not lost_graph(graph, lost)}
        for precision, stages in manifest.variants.items()
    }
    engines = [engine for engine in manifest.engines if engine.file not in lost]
    gone = set(lost)
    gone.update(engine.facts for engine in manifest.engines if engine.file in lost)
    for stages in manifest.variants.values():
        gone.update(name for graph in stages.values() if lost_graph(graph, lost) for name in graph_files(graph))
    return replace(
        manifest,
        variants={precision: stages for precision, stages in variants.items() if stages},
        engines=tuple(replace(engine, facts="") if engine.facts in lost else engine for engine in engines),
        kernels=tuple(kernel for kernel in manifest.kernels if kernel.file not in lost),
        files={name: record for name, record in manifest.files.items() if name not in gone},
    )


def lost_graph(graph: StageSpec, lost: Collection[str]) -> bool:
    """Whether one of a graph's files is among the lost ones."""
    return any(name in lost for name in graph_files(graph))


def _calibrations(before: Manifest, after: Manifest) -> str:
    """Hours of work at full size: they are not dropped without a word."""
    told = [
        f"; the {precision} graph of {stage} was calibrated on {graph.calibration.name}: pass --calibrate again"
        for precision, stages in before.variants.items()
        for stage, graph in stages.items()
        if graph.calibration is not None and stage not in after.variants.get(precision, {})
    ]
    return "".join(told)
