"""What a build has to do: nothing is imported for it but the manifest's reader, and nothing is written."""

from __future__ import annotations

from importlib import metadata

from ...runtime.bundle.stage_graphs import graph_files
from .job import Job
from .kernels import kernel_specs
from .libraries import Flavour


def outdated_stages(job: Job) -> tuple[str, ...]:
    """The stages whose engine is not there, not whole, or not what this build would make, in their order."""
    version = _installed_version(job.flavour)
    return tuple(stage for stage in job.stages if version is None or not _is_current(job, stage, version))


def kernels_are_current(job: Job) -> bool:
    """Whether all our kernels are compiled for the target, from the sources of this program."""
    held = job.bundle.manifest.kernels
    return all(spec in held and job.bundle.fault(spec.file, hashed=True) is None for spec in kernel_specs(job.target))


def _is_current(job: Job, stage: str, version: str) -> bool:
    engine, graph = job.engine(stage, version), job.graph(stage)
    if engine is None or graph is None or engine not in job.bundle.manifest.engines:
        return False
    # A stripped engine takes its weights from the graph.
    names = (engine.file, engine.facts, *(graph_files(graph) if job.stripped else ()))
    return all(job.bundle.fault(name, hashed=True) is None for name in names if name in job.bundle.manifest.files)


def _installed_version(flavour: Flavour) -> str | None:
    """The library's, without loading it: that takes longer than all else."""
    try:
        return metadata.version(flavour.name).partition(".post")[0]
    except Exception:  # not installed, or damaged: the import that follows tells
        return None
