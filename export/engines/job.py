"""One call of ``build``: its settled arguments, and what the manifest will say of the engines."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.manifest import EngineSpec, Manifest, StageSpec, graph_sha256
from ...runtime.gpu.device import GpuStatus
from .libraries import Flavour
from .shapes import engine_shapes, parse_ranges
from .targets import Target


@dataclass(frozen=True)
class Job:
    """One call's settled arguments."""

    bundle: Bundle
    target: Target
    flavour: Flavour
    gpu: GpuStatus
    precision: str
    stages: tuple[str, ...]
    dynamic: tuple[str, ...]
    stripped: bool

    @property
    def folder(self) -> str:
        """Place of the engines in the bundle."""
        return f"engines/{self.target.name}-{self.flavour.name}-{self.precision}"

    def graph(self, stage: str) -> StageSpec | None:
        """What a stage's engine is built from; None where it is not written yet."""
        manifest: Manifest = self.bundle.manifest
        if self.precision == "fp32":
            return manifest.stages[stage]
        return manifest.variants.get(self.precision, {}).get(stage)

    def engine(self, stage: str, version: str) -> EngineSpec | None:
        """The manifest's entry of a stage's engine, built by a version of the library; None without its graph."""
        graph = self.graph(stage)
        if graph is None:
            return None
        manifest = self.bundle.manifest
        shapes = engine_shapes(graph, manifest.model, parse_ranges(self.dynamic, manifest.model))
        return EngineSpec(
            stage=stage,
            file=f"{self.folder}/{stage}.plan",
            target=self.target.name,
            flavour=self.flavour.name,
            version=version,
            precision=self.precision,
            compute_capabilities=self.target.compute_capabilities,
            onnx_sha256=graph_sha256(manifest, graph, weights=not self.stripped),
            inputs=shapes.inputs,
            outputs=shapes.outputs,
            profiles=shapes.profiles,
            facts=f"{self.folder}/{stage}.json",
            stripped=self.stripped,
            platform="" if self.flavour.is_portable_between_systems else _platform(),
        )


def _platform() -> str:
    return "windows" if sys.platform == "win32" else "linux"
