"""``build_engines``: plans for a target from a bundle's graphs, put into the bundle at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UserError
from ...runtime.bundle.bundle import Bundle, hash_files
from ...runtime.bundle.home import check_not_packaged
from ...runtime.bundle.manifest import EngineSpec, KernelSpec, Manifest, StageSpec
from ...runtime.gpu.device import probe
from ...runtime.install import install_hint
from ..bundle_lock import building
from ..lost_files import drop_lost
from ..manifest_file import rewrite_manifest
from ..partial_folders import partial_path
from .facts import engine_facts, facts_json
from .graph_attentions import spelled_out
from .job import Job
from .kernels import FOLDER as KERNEL_FOLDER
from .kernels import write_cubins
from .libraries import check_machine, find_flavour, load_library
from .monitor import BuildProgress
from .outdated import outdated_engines
from .plan import Plan
from .process import run_build
from .shapes import parse_ranges
from .targets import check_precision, find_target
from .up_to_date import kernels_are_current, outdated_stages
from .worker import Order

if TYPE_CHECKING:
    from ..precision.variant import StageVariant, VariantOptions

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")


@dataclass(frozen=True)
class EngineReport:
    """What became of one stage."""

    engine: EngineSpec
    plan_bytes: int
    seconds: float
    fused_attentions: int
    decomposed_attentions: tuple[tuple[str, str], ...]
    """Name and reason of each attention that is not one kernel."""
    peak_host_bytes: int | None


def build_engines(
    bundle: str | os.PathLike[str],
    target: str,
    *,
    flavour: str = "tensorrt-rtx",
    precision: str = "fp16",
    stages: Sequence[str] | None = None,
    dynamic: Sequence[str] = (),
    stripped: bool = False,
    variant: VariantOptions | None = None,
    on_phase: Callable[[str], None] = lambda phase: None,
    on_variant: Callable[[StageVariant], None] = lambda variant: None,
    on_progress: Callable[[BuildProgress], None] = lambda progress: None,
    on_engine: Callable[[EngineReport], None] = lambda report: None,
    on_notice: Callable[[str], None] = lambda line: None,
) -> tuple[EngineSpec, ...]:
    """Build engines of a bundle's stages, and our kernels, for a target.

    Everything is written to a temporary folder and put in place when complete; engines of other targets stay, those of
    the same target, flavour, precision and stage are replaced, unless they are whole and what would be built: then they
    stay, and where all is so, nothing is written. No GPU is needed but by flavour "tensorrt". Another
    build into the bundle is waited for; what is lost or damaged of an earlier one leaves the manifest first.

    Args:
        bundle: folder or name of a bundle.
        target: a name of :data:`TARGETS`.
        flavour: tensorrt-rtx or tensorrt.
        precision: fp32, fp16, bf16, int8 or fp8; graphs that the bundle lacks are made from its float32 ones first.
        stages: names; None: all.
        dynamic: ranges such as "height=256:320:512"; sizes not named are fixed.
        stripped: without weights, which are then read from the ONNX when the engine is loaded (needs a driver).
        variant: calibration, allowed loss and check of the graphs in another precision; None: as they are, or plain.
        on_phase, on_variant, on_progress, on_engine: what is being done; what a graph in another precision became;
            where the builder, or the check of such a graph, is; what one engine became.
        on_notice: told who is waited for, what was lost, and which other engines fit their graphs no more, a line each.

    Returns:
        What the manifest says about the stages' engines, new or kept; `on_engine` was told of the new ones.

    Raises:
        UserError: anything unknown, missing or impossible, or a graph that does not build for the target. Nothing is
            left then.
    """
    job = _settle(bundle, target, flavour, precision, stages, dynamic, stripped)
    if precision == "fp32" and variant is not None:
        raise UserError(
            "float32 graphs are the bundle's own, and nothing is made or checked: calibration, largest loss and quick "
            "check are for other precisions; leave them out, or choose fp16."
        )
    if _is_up_to_date(job, variant):
        return _engines_of(job)
    # The slow imports, only where there is something to build.
    load_library(job.flavour)
    if stripped and not job.gpu.found:
        # The builder ends the whole process there (TensorRT for RTX 1.7).
        raise UserError(f"--strip needs a GPU with its driver ({job.gpu.reason}): build without --strip here.")
    with building(job.bundle.path, on_notice):
        if precision != "fp32":
            job = replace(job, bundle=_with_variant(job, variant, on_phase, on_variant, on_notice, on_progress))
        # As another build may have left it.
        opened = Bundle.open(bundle, verify=False)
        job = replace(job, bundle=drop_lost(opened, opened.lost_files(), on_notice))
        outdated = replace(job, stages=outdated_stages(job))
        _build(outdated, on_phase, on_progress, on_engine)
        return _engines_of(replace(job, bundle=Bundle.open(bundle, verify=False)))


def _is_up_to_date(job: Job, variant: VariantOptions | None) -> bool:
    """Whether nothing is to be built or written; reads the manifest and hashes what it would make."""
    if outdated_stages(job) or not kernels_are_current(job):
        return False
    if job.precision == "fp32":
        return True
    from ..precision.currency import VariantOptions, variant_is_current

    return variant_is_current(job.bundle, job.precision, job.stages, variant or VariantOptions())


def _engines_of(job: Job) -> tuple[EngineSpec, ...]:
    """What the manifest says of the stages' engines, in the order of the stages."""
    held = {engine.file: engine for engine in job.bundle.manifest.engines}
    return tuple(held[f"{job.folder}/{stage}.plan"] for stage in job.stages)


def _build(
    job: Job,
    on_phase: Callable[[str], None],
    on_progress: Callable[[BuildProgress], None],
    on_engine: Callable[[EngineReport], None],
) -> None:
    """Build the stages, and our kernels where they are not current, into a temporary folder and put them in place."""
    engines_folder = job.bundle.path.resolve() / "engines"
    temporary = partial_path(engines_folder / job.target.name)
    try:
        (temporary / "plans").mkdir(parents=True)
        engines = []
        for stage in job.stages:
            on_phase(f"building {stage}")
            engines.append(_build_stage(job, stage, temporary / "plans", on_progress, on_engine))
        kernels: tuple[KernelSpec, ...] = ()
        if not kernels_are_current(job):
            kernels = write_cubins(job.target, temporary / "kernels", lambda name: on_phase(f"compiling {name}"))
        on_phase("putting engines into the bundle")
        _put_in_place(job, temporary, tuple(engines), kernels)
    except OSError as error:
        raise UserError(
            f"engines of {job.bundle.path} cannot be written ({error.strerror or error}): check space and permissions."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if engines_folder.is_dir() and not any(engines_folder.iterdir()):
            engines_folder.rmdir()


def _settle(
    bundle: str | os.PathLike[str],
    target: str,
    flavour: str,
    precision: str,
    stages: Sequence[str] | None,
    dynamic: Sequence[str],
    stripped: bool,
) -> Job:
    """Check every argument before anything is computed."""
    gpu = probe()
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r} is unknown: choose {', '.join(PRECISIONS)}.")
    found, chosen = find_target(target, gpu), find_flavour(flavour)
    check_precision(found, precision)
    opened = Bundle.open(bundle, verify=False)
    check_not_packaged(opened.path)
    known = opened.manifest.stages
    for stage in stages or ():
        if stage not in known:
            raise UserError(f"the bundle has no stage {stage!r}: choose of {', '.join(known)}.")
    wanted = tuple(stage for stage in known if stages is None or stage in stages)
    parse_ranges(dynamic, opened.manifest.model)
    # First the machine: a library that is of no use here need not be installed.
    check_machine(chosen, found, gpu)
    return Job(opened, found, chosen, gpu, precision, wanted, tuple(dynamic), stripped)


def _with_variant(
    job: Job,
    options: VariantOptions | None,
    on_phase: Callable[[str], None],
    on_variant: Callable[[StageVariant], None],
    on_notice: Callable[[str], None],
    on_progress: Callable[[BuildProgress], None],
) -> Bundle:
    """The bundle with its graphs in the wanted precision; those up to date are kept."""
    try:
        from ..precision import VariantOptions, write_variant
        from ..precision.validation import watch_runs
    except ImportError as error:
        raise UserError(f"making {job.precision} graphs needs {error.name or error}: {install_hint('rtx')}.") from None
    written: set[str] = set()

    def on_stage(report: StageVariant) -> None:
        on_variant(report)
        if not report.skipped:
            written.add(report.stage)

    def on_run(number: int, total: int) -> None:
        on_progress(BuildProgress(f"run {number} of {total}", number - 1, total))

    with watch_runs(on_run):
        write_variant(
            job.bundle.path,
            job.precision,
            job.stages,
            options or VariantOptions(),
            on_stage_start=lambda stage: on_phase(f"{job.precision} graph of {stage}"),
            on_stage=on_stage,
            on_sample=lambda done, total: on_phase(f"calibrating on sample {done + 1} of {total}"),
            on_notice=on_notice,
        )
    bundle = Bundle.open(job.bundle.path, verify=False)
    # Those in this job's own folder are about to be replaced.
    others = [e for e in bundle.manifest.engines if e.stage in written and not e.file.startswith(f"{job.folder}/")]
    notice = outdated_engines(bundle, others, job.precision)
    if notice is not None:
        on_notice(notice)
    return bundle


def _build_stage(
    job: Job,
    stage: str,
    folder: Path,
    on_progress: Callable[[BuildProgress], None],
    on_engine: Callable[[EngineReport], None],
) -> EngineSpec:
    """Build one plan into `folder`, its facts beside it."""
    graph = job.graph(stage)
    assert graph is not None
    onnx_bytes = _check_graph_files(job.bundle, graph)
    order = Order(
        bundle=str(job.bundle.path.resolve()),
        stage=stage,
        precision=job.precision,
        target=job.target.name,
        flavour=job.flavour.name,
        dynamic=job.dynamic,
        stripped=job.stripped,
        plan=str((folder / f"{stage}.plan").resolve()),
    )
    plan = run_build(order, on_progress)
    if job.precision != "fp32":
        # Said as well: it is not for the builder to see.
        exact = spelled_out(job.bundle.graph(job.bundle.manifest.stages[stage]), job.bundle.graph(graph))
        plan = replace(plan, attentions=replace(plan.attentions, decomposed=(*plan.attentions.decomposed, *exact)))
    engine = job.engine(stage, plan.version)
    assert engine is not None
    facts = engine_facts(engine, plan, graph.file, onnx_bytes, job.gpu)
    (folder / f"{stage}.json").write_text(facts_json(facts), encoding="utf-8")
    on_engine(_report(engine, plan))
    return engine


def _report(engine: EngineSpec, plan: Plan) -> EngineReport:
    attentions = plan.attentions
    decomposed = tuple((entry.name, entry.reason) for entry in attentions.decomposed)
    return EngineReport(engine, plan.plan_bytes, plan.seconds, len(attentions.fused), decomposed, plan.peak_host_bytes)


def _check_graph_files(bundle: Bundle, graph: StageSpec) -> int:
    """Bytes of a graph's files, which are what the manifest says: a damaged one would give a damaged engine."""
    files = bundle.manifest.files
    names = [name for name in (graph.file, graph.file + ".data") if name in files]
    for name, record in hash_files(bundle.path, names).items():
        if record != files[name]:
            raise UserError(f"bundle file {name} was altered (its SHA-256 differs): copy it again, or export again.")
    return sum(files[name].bytes for name in names)


def _put_in_place(job: Job, temporary: Path, engines: tuple[EngineSpec, ...], kernels: tuple[KernelSpec, ...]) -> None:
    """Move everything in. The bundle is whole at every moment: what is replaced leaves the manifest first, what is new
    enters it last.
    """
    root = job.bundle.path.resolve()
    moves = {temporary / "plans" / Path(name).name: root / name for e in engines for name in (e.file, e.facts)}
    moves |= {temporary / "kernels" / Path(k.file).relative_to(KERNEL_FOLDER): root / k.file for k in kernels}
    names = [destination.relative_to(root).as_posix() for destination in moves.values()]
    # Hashed where they lie: what is in place is recorded at once.
    records = hash_files(root, [source.relative_to(root).as_posix() for source in moves])
    by_name = dict(zip(names, records.values(), strict=True))

    def drop(manifest: Manifest) -> Manifest:
        return replace(
            manifest,
            engines=tuple(e for e in manifest.engines if e.file not in by_name),
            kernels=tuple(k for k in manifest.kernels if k.file not in by_name),
            files={name: record for name, record in manifest.files.items() if name not in by_name},
        )

    def add(manifest: Manifest) -> Manifest:
        kept = drop(manifest)
        return replace(
            kept,
            engines=(*kept.engines, *engines),
            kernels=(*kept.kernels, *kernels),
            files=kept.files | by_name,
        )

    rewrite_manifest(root, drop)
    try:
        for source, destination in moves.items():
            destination.parent.mkdir(parents=True, exist_ok=True)
            source.replace(destination)
        rewrite_manifest(root, add)
    except BaseException:
        for destination in moves.values():
            destination.unlink(missing_ok=True)
        _remove_empty(root / "engines")
        raise


def _remove_empty(folder: Path) -> None:
    for inner in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        if not any(inner.iterdir()):
            inner.rmdir()
