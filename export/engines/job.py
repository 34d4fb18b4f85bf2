"""One call of ``build``: its settled arguments, what the manifest will say of its engines, and which are there already.

Nothing is imported for it but the manifest's reader, and nothing is written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from ...errors import UserError
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.home import check_not_packaged
from ...runtime.bundle.manifest import ACCUMULATORS, PRECISIONS, EngineSpec, StageSpec, graph_sha256
from ...runtime.bundle.stage_graphs import graph_files
from ...runtime.gpu.device import GpuStatus, probe
from .kernels import kernel_specs
from .libraries import EngineBackend, check_machine, find_engine_backend
from .shapes import EngineShapes, check_batches, engine_shapes, parse_ranges
from .targets import Target, check_precision, find_target

FORM = 1
"""Version of what :mod:`.rewrites` makes of a graph: an engine of another one is built again."""


@dataclass(frozen=True)
class Job:
    """One call's settled arguments."""

    bundle: Bundle
    target: Target
    backend: EngineBackend
    gpu: GpuStatus
    precision: str
    stages: tuple[str, ...]
    dynamic: tuple[str, ...]
    stripped: bool
    batches: tuple[int, ...] = ()
    """Guidance batches; none: all."""
    accumulate: str = "auto"

    @property
    def folder(self) -> str:
        """Place of the engines in the bundle."""
        return f"engines/{self.target.name}-{self.backend.name}-{self.precision}"

    def has_graph(self, stage: str) -> bool:
        """Whether what the stage's engine is built from is written."""
        return self.precision == "fp32" or stage in self.bundle.manifest.variants.get(self.precision, {})

    def graph(self, stage: str) -> StageSpec:
        """What a stage's engine is built from."""
        manifest = self.bundle.manifest
        return (manifest.stages if self.precision == "fp32" else manifest.variants[self.precision])[stage]

    def shapes(self, graph: StageSpec) -> EngineShapes:
        """The tensors of a graph as its engine has them."""
        model = self.bundle.manifest.model
        return engine_shapes(graph, model, parse_ranges(self.dynamic, model), self.batches)

    def engine(self, stage: str, version: str) -> EngineSpec:
        """The manifest's entry of a stage's engine, built by a version of the library."""
        graph = self.graph(stage)
        shapes = self.shapes(graph)
        return EngineSpec(
            stage=stage,
            file=f"{self.folder}/{stage}.plan",
            target=self.target.name,
            backend=self.backend.name,
            version=version,
            precision=self.precision,
            compute_capabilities=self.target.compute_capabilities,
            onnx_sha256=graph_sha256(self.bundle.manifest, graph, weights=not self.stripped),
            inputs=shapes.inputs,
            outputs=shapes.outputs,
            profiles=shapes.profiles,
            metadata=f"{self.folder}/{stage}.json",
            stripped=self.stripped,
            platform=("windows" if sys.platform == "win32" else "linux") if self.backend.needs_gpu else "",
            accumulate=self.accumulate,
            form=FORM,
        )

    def outdated_stages(self) -> tuple[str, ...]:
        """The stages whose engine is not there, not whole, or not what this build would make, in their order."""
        version = _installed_version(self.backend)
        return tuple(stage for stage in self.stages if version is None or not self._is_current(stage, version))

    def kernels_are_current(self) -> bool:
        """Whether all our kernels are compiled for the target, from the sources of this program."""
        held = self.bundle.manifest.kernels
        return all(
            spec in held and self.bundle.fault(spec.file, hashed=True) is None for spec in kernel_specs(self.target)
        )

    def _is_current(self, stage: str, version: str) -> bool:
        if not self.has_graph(stage):
            return False
        manifest, engine = self.bundle.manifest, self.engine(stage, version)
        # A stripped engine takes its weights from the graph.
        names = (engine.file, engine.metadata, *(graph_files(self.graph(stage)) if self.stripped else ()))
        return engine in manifest.engines and all(
            self.bundle.fault(name, hashed=True) is None for name in names if name in manifest.files
        )


def settle(
    bundle: str | os.PathLike[str],
    target: str,
    backend: str,
    precision: str,
    stages: Sequence[str] | None,
    dynamic: Sequence[str],
    stripped: bool,
    batches: Sequence[int] = (),
    accumulate: str = "auto",
) -> Job:
    """Check every argument of :func:`.bundle_engines.build_engines` before anything is computed.

    Raises:
        UserError: unknown, or nothing that this machine can build.
    """
    gpu = probe()
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r} is unknown: choose {', '.join(PRECISIONS)}.")
    found, chosen = find_target(target, gpu), find_engine_backend(backend)
    check_precision(found, precision)
    _check_accumulate(accumulate, precision, stripped)
    opened = Bundle.open(bundle, verify=False)
    check_not_packaged(opened.path)
    known = opened.manifest.stages
    for stage in stages or ():
        if stage not in known:
            raise UserError(f"the bundle has no stage {stage!r}: choose of {', '.join(known)}.")
    wanted = tuple(stage for stage in known if stages is None or stage in stages)
    check_batches(batches, parse_ranges(dynamic, opened.manifest.model), opened.manifest.model)
    # First the machine: a library that is of no use here need not be installed.
    check_machine(chosen, found, gpu)
    return Job(opened, found, chosen, gpu, precision, wanted, tuple(dynamic), stripped, tuple(batches), accumulate)


def _check_accumulate(accumulate: str, precision: str, stripped: bool) -> None:
    if accumulate not in ACCUMULATORS:
        raise UserError(f"--accumulate {accumulate[:40]!r} is unknown: choose {' or '.join(ACCUMULATORS)}.")
    if accumulate == "fp32" and precision != "fp16":
        raise UserError(
            f"--accumulate fp32 is for products of float16, and precision {precision} was asked for: leave it out, or "
            "choose --precision fp16."
        )
    if accumulate == "fp32" and stripped:
        raise UserError(
            "--accumulate fp32 changes how an engine holds its weights, which --strip fills in later: leave one out."
        )


def _installed_version(backend: EngineBackend) -> str | None:
    """The library's, without loading it: that takes longer than all else."""
    try:
        return metadata.version(backend.name).partition(".post")[0]
    except Exception:  # not installed, or damaged: the import that follows tells
        return None
