"""``build_engines``: plans for a target from a bundle's graphs, put into the bundle at once."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.engines import METADATA_VERSION, staleness
from ...runtime.bundle.manifest import EngineSpec, KernelSpec, Manifest
from ...runtime.bundle.stage_graphs import graph_files
from ...runtime.install import install_hint
from ..bundle_lock import building, partial_path
from ..bundle_parts import drop_lost, replace_parts
from ..events import Events
from ..precision.recipe import VariantOptions, float16_accumulators, recorded, variant_is_current, variant_rules
from .job import Job, settle
from .kernels import write_cubins
from .libraries import load_library
from .process import run_build

if TYPE_CHECKING:
    from ..precision.variant import StageVariant

_NOBODY = Events()


def build_engines(
    bundle: str | os.PathLike[str],
    target: str,
    *,
    backend: str = "tensorrt-rtx",
    precision: str = "fp16",
    stages: Sequence[str] | None = None,
    dynamic: Sequence[str] = (),
    batches: Sequence[int] = (),
    stripped: bool = False,
    accumulate: str = "auto",
    variant: VariantOptions | None = None,
    events: Events = _NOBODY,
) -> tuple[EngineSpec, ...]:
    """Build engines of a bundle's stages, and our kernels, for a target.

    Everything is written to a temporary folder and put in place when complete; engines of other targets stay, those of
    the same target, backend, precision and stage are replaced, unless they are whole and what would be built: then they
    stay, and where all is so, nothing is written. No GPU is needed but by backend "tensorrt". Another
    build into the bundle is waited for; what is lost or damaged of an earlier one leaves the manifest first.

    Args:
        bundle: folder or name of a bundle.
        target: a name of :data:`TARGETS`, "current", or a card.
        backend: tensorrt-rtx or tensorrt.
        precision: fp32, fp16, bf16, int8 or fp8; graphs that the bundle lacks are made from its float32 ones first.
        stages: names; None: all.
        dynamic: ranges such as "height=256:320:512"; sizes not named are fixed.
        batches: rows of guidance that the U-Net's engine is built for, of 1, 2 and 3; none: all. A single one makes a
            smaller plan of fixed sizes, in which other batches run in turns or with rows to spare.
        stripped: without weights, which are then read from the ONNX when the engine is loaded (needs a driver).
        accumulate: what float16 products accumulate in: auto leaves it to the library and the card, fp32 is exact and,
            on GeForce cards, half as fast where the library would have taken float16.
        variant: calibration, allowed loss and check of the graphs in another precision; None: as they are, or plain.
        events: callbacks for progress and results; `engine` is called for new engines only.

    Returns:
        What the manifest says about the stages' engines, new or kept.

    Raises:
        UserError: anything unknown, missing or impossible, or a graph that does not build for the target. Nothing is
            left then.
    """
    job = settle(bundle, target, backend, precision, stages, dynamic, stripped, batches, accumulate)
    if precision == "fp32" and variant is not None:
        raise UserError(
            "float32 graphs are the bundle's own, and nothing is made or checked: calibration, largest loss and quick "
            "check are for other precisions; leave them out, or choose fp16."
        )
    options = variant or VariantOptions()
    if job.outdated_stages() or not job.kernels_are_current() or not _graphs_are_current(job, options):
        # The slow imports, only where there is something to build.
        load_library(job.backend)
        if stripped and not job.gpu.found:
            # The builder ends the whole process there (TensorRT for RTX 1.7).
            raise UserError(f"--strip needs a GPU with its driver ({job.gpu.reason}): build without --strip here.")
        with building(job.bundle.path, events.notice):
            if precision != "fp32":
                _write_graphs(job, options, events)
            # As another build may have left it.
            opened = Bundle.open(bundle, verify=False)
            _build(replace(job, bundle=drop_lost(opened, opened.lost_files(), events.notice)), options, events)
            job = replace(job, bundle=Bundle.open(bundle, verify=False))
    held = {engine.file: engine for engine in job.bundle.manifest.engines}
    return tuple(held[f"{job.folder}/{stage}.plan"] for stage in job.stages)


def _graphs_are_current(job: Job, options: VariantOptions) -> bool:
    return job.precision == "fp32" or variant_is_current(job.bundle, job.precision, job.stages, options)


def _write_graphs(job: Job, options: VariantOptions, events: Events) -> None:
    """The graphs in the wanted precision; those up to date are kept."""
    try:
        from ..precision.variant import write_variant
    except ImportError as error:
        raise UserError(f"making {job.precision} graphs needs {error.name or error}: {install_hint('rtx')}.") from None
    written: set[str] = set()

    def on_variant(report: StageVariant) -> None:
        events.variant(report)
        if not report.skipped:
            written.add(report.stage)

    write_variant(job.bundle.path, job.precision, job.stages, options, replace(events, variant=on_variant))
    bundle = Bundle.open(job.bundle.path, verify=False)
    old: dict[tuple[str, str, bool, str], list[str]] = {}
    for engine in bundle.manifest.engines:
        # Those in this job's own folder are about to be replaced.
        others = engine.precision == job.precision and not engine.file.startswith(f"{job.folder}/")
        if others and engine.stage in written and staleness(engine, bundle.manifest) is not None:
            old.setdefault((engine.target, engine.backend, engine.stripped, engine.accumulate), []).append(engine.stage)
    if old:
        commands = [
            f"consisti2v build {bundle.path} --target {target} --backend {backend} --precision {job.precision} "
            f"--stages {','.join(names)}{' --strip' if stripped else ''}"
            f"{' --accumulate fp32' if accumulate == 'fp32' else ''}"
            for (target, backend, stripped, accumulate), names in old.items()
        ]
        events.notice(
            f"engines for {', '.join(dict.fromkeys(target for target, *_ in old))} were built from the old "
            f"{job.precision} graphs and are refused from now on; build them again: {'; '.join(commands)}"
        )


def _build(job: Job, options: VariantOptions, events: Events) -> None:
    """Build outdated stages, and our kernels where they are not current, in a temporary folder; put them in place."""
    root = job.bundle.path.resolve()
    temporary = partial_path(root / "engines")
    try:
        (temporary / job.folder).mkdir(parents=True)
        engines = tuple(_build_stage(job, stage, temporary, options, events) for stage in job.outdated_stages())
        kernels: tuple[KernelSpec, ...] = ()
        if not job.kernels_are_current():
            kernels = write_cubins(job.target, temporary, lambda name: events.phase(f"compiling {name}"))
        events.phase("putting engines into the bundle")

        def add(manifest: Manifest) -> Manifest:
            return replace(manifest, engines=(*manifest.engines, *engines), kernels=(*manifest.kernels, *kernels))

        names = [name for engine in engines for name in (engine.file, engine.metadata)]
        names += [kernel.file for kernel in kernels]
        if names:
            replace_parts(root, temporary, names, add)
    except OSError as error:
        raise UserError(
            f"engines of {job.bundle.path} cannot be written ({error.strerror or error}): check space and permissions."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _build_stage(job: Job, stage: str, temporary: Path, options: VariantOptions, events: Events) -> EngineSpec:
    """Build one plan, its facts beside it: a plan itself tells nothing without a GPU."""
    events.phase(f"building {stage}")
    plan = temporary / job.folder / f"{stage}.plan"
    order = {
        "bundle": str(job.bundle.path.resolve()),
        "target": job.target.name,
        "backend": job.backend.name,
        "precision": job.precision,
        "stages": [stage],
        "dynamic": job.dynamic,
        "batches": job.batches,
        "stripped": job.stripped,
        "accumulate": job.accumulate,
        "plan": str(plan),
    }
    built = run_build(order, events.progress)
    if job.precision != "fp32":
        # Said as well: it is not for the builder to see.
        record: dict[str, Any] = recorded(job.bundle, job.precision).get(stage, {"graph": {}})
        reason = "spelled out in the graph, no fused kernel takes its head size"
        spelled_out = [{"name": name, "reason": reason} for name in record["graph"].get("decomposed_attentions", ())]
        built["attentions"]["decomposed"] += spelled_out
        limit = variant_rules(job.precision, job.stages, options).limit
        lost = float16_accumulators(record, limit) if job.accumulate == "auto" else None
        if lost is not None:
            built["warnings"].append(f"stage {stage} {lost}: --accumulate fp32 keeps the limit on every card")
            events.notice(built["warnings"][-1])
    engine, graph, files = job.engine(stage, built["version"]), job.graph(stage), job.bundle.manifest.files
    described = dataclasses.asdict(engine)
    fields = ("stage", "target", "compute_capabilities", "backend", "precision", "stripped", "platform", "accumulate")
    size = sum(files[name].bytes for name in graph_files(graph) if name in files)
    metadata: dict[str, Any] = {
        "metadata_version": METADATA_VERSION,
        **{name: described[name] for name in (*fields, "inputs", "outputs", "profiles")},
        "onnx": {"file": graph.file, "sha256": engine.onnx_sha256, "bytes": size},
        **built,
        "gpu": {"name": job.gpu.name, "compute_capability": job.gpu.compute_capability} if job.gpu.found else None,
    }
    plan.with_suffix(".json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    events.engine(engine, metadata)
    return engine
