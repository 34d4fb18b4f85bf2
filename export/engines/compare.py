"""``--compare onnxruntime``: engines and float32 graphs on the same random inputs, by polygraphy. Needs a GPU."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError, first_line
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.graph_source import GraphSource
from ...runtime.bundle.manifest import EngineSpec, StageSpec
from ...runtime.gpu.device import probe
from ...runtime.install import install_hint
from ...runtime.onnx_session import make_session

SEEDS = (0, 1, 2)
RELATIVE_L2_LIMIT = 5e-3
"""Of a half-precision engine to its float32 graph, at every batch and seed."""

Arrays = Mapping[str, NDArray[Any]]


def check_comparison(other: str | None) -> None:
    """Refuse a comparison that cannot be made, before anything is built.

    Raises:
        UserError: unknown, without a GPU, or without polygraphy.
    """
    if other is None:
        return
    if other != "onnxruntime":
        raise UserError(f"--compare {other!r} is unknown: choose onnxruntime.")
    gpu = probe()
    if not gpu.found:
        raise UserError(f"--compare onnxruntime runs the engines, and there is no GPU ({gpu.reason}): leave it out.")
    if importlib.util.find_spec("polygraphy") is None:
        raise UserError(f"--compare onnxruntime needs polygraphy: {install_hint('rtx')}.")


def compare_engines(bundle: str | os.PathLike[str], engines: Sequence[EngineSpec]) -> Iterator[str]:
    """Run every engine, every profile of it and every seed; one line each.

    Raises:
        UserError: an fp32 or fp16 engine strays further than :data:`RELATIVE_L2_LIMIT`, or gives numbers that are not
            finite.
    """
    opened = Bundle.open(bundle, verify=False)
    for engine in engines:
        for number in range(max(len(engine.profiles), 1)):
            worst = float(np.max([_loss(opened, engine, number, seed) for seed in SEEDS]))
            rows = engine.profiles[number].rows if engine.profiles else None
            batch = "" if rows is None else f" with {rows} rows"
            if not worst <= RELATIVE_L2_LIMIT and engine.precision in ("fp32", "fp16"):
                raise UserError(
                    f"the engine of {engine.stage}{batch} differs from ONNX Runtime by {worst:.1e} relative L2 "
                    f"(allowed {RELATIVE_L2_LIMIT:.0e}): do not use it; build with --precision fp32 to compare."
                )
            yield f"{engine.stage:<13} relative L2 to onnxruntime float32 {worst:.1e}{batch}"


def _loss(bundle: Bundle, engine: EngineSpec, profile: int, seed: int) -> float:
    """The largest relative L2 over the outputs; NaN where one is not finite."""
    graph = bundle.manifest.stages[engine.stage]
    inputs = random_inputs(engine, graph, profile, seed)
    expected = _run_onnxruntime(bundle.graph(graph, hashed=True), inputs)
    found = _run_engine(bundle, engine, profile, inputs)
    return float(np.max([_relative_l2(found[name], expected[name]) for name in expected]))


def random_inputs(engine: EngineSpec, graph: StageSpec, profile: int, seed: int) -> dict[str, NDArray[Any]]:
    """Normal numbers, timesteps and token numbers of a profile's usual sizes, in the types of the float32 graph."""
    random = np.random.default_rng(seed)
    arrays: dict[str, NDArray[Any]] = {}
    types = {spec.name: spec.dtype for spec in graph.inputs}
    for spec in engine.inputs:
        ranges = engine.profiles[profile].inputs if engine.profiles else {}
        shape = ranges[spec.name].optimum if spec.name in ranges else tuple(int(size) for size in spec.shape)
        if types[spec.name] == "float32":
            arrays[spec.name] = random.standard_normal(shape, dtype=np.float32)
        else:
            arrays[spec.name] = random.integers(1, 49, shape).astype(types[spec.name])
    return arrays


def _run_onnxruntime(graph: GraphSource, inputs: Arrays) -> dict[str, NDArray[Any]]:
    import onnxruntime

    session = make_session(graph, onnxruntime.SessionOptions(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def choose_library(backend: str) -> None:
    """Which TensorRT polygraphy runs: its part for that asks once, when it is imported."""
    from polygraphy import config

    config.USE_TENSORRT_RTX = backend == "tensorrt-rtx"


def _run_engine(bundle: Bundle, engine: EngineSpec, profile: int, inputs: Arrays) -> dict[str, NDArray[Any]]:
    choose_library(engine.backend)
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    load = EngineFromBytes(bundle.read(engine.file, hashed=True).tobytes())
    types = {spec.name: spec.dtype for spec in engine.inputs}
    given = {name: array.astype(types[name]) for name, array in inputs.items()}
    try:
        # Engines that must not allocate while they run take no context of polygraphy's default, which owns its memory.
        with TrtRunner(load, optimization_profile=profile, allocation_strategy="profile") as runner:
            return {name: np.array(array, np.float32) for name, array in runner.infer(given).items()}
    except Exception as error:  # polygraphy's own class, and whatever the library raises beneath it
        raise UserError(
            f"polygraphy cannot run the engine of {engine.stage} ({first_line(error)}): build it again on this machine "
            "with --target current, or leave --compare out."
        ) from error


def _relative_l2(found: NDArray[Any], expected: NDArray[Any]) -> float:
    exact = expected.astype(np.float64)
    return float(np.linalg.norm(found.astype(np.float64) - exact) / np.linalg.norm(exact))
