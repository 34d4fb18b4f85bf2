"""Which graph of the bundle an engine was built from, and whether that is still the one in it."""

from __future__ import annotations

from .manifest import EngineSpec, Manifest, StageSpec, graph_sha256


def staleness(engine: EngineSpec, manifest: Manifest) -> str | None:
    """Why the engine is not of this bundle's graph, in one sentence without its end; None: it is."""
    graph = engine_graph(engine, manifest)
    if graph is None:
        return f"the engine of {engine.stage} was built from a {engine.precision} graph that the bundle no longer has"
    if graph_sha256(manifest, graph, weights=not engine.stripped) != engine.onnx_sha256:
        return f"the engine of {engine.stage} was built from another {engine.precision} graph than the bundle has now"
    return None


def engine_graph(engine: EngineSpec, manifest: Manifest) -> StageSpec | None:
    """The ONNX graph an engine is built from; None where the bundle has none of that precision."""
    if engine.precision == "fp32":
        return manifest.stages.get(engine.stage)
    return manifest.variants.get(engine.precision, {}).get(engine.stage)
