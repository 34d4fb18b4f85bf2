"""Engines without weights: filled from the graph when loaded, and again from a graph whose weights were changed."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ...export.precision.cases import Cases
from ...runtime.bundle.bundle import Bundle, hash_files
from ...runtime.bundle.manifest import MANIFEST_NAME
from ...runtime.bundle.stage_graphs import stage_graph
from ...runtime.session import OnnxCpuSession
from .engines import target_here
from .parity import dims_of, relative_l2, run_session

STAGE = "unet"
FACTOR = 0.5
"""What the last product's weights are multiplied by: a power of two, so that no rounding is added."""


def refit_round_trip(bundle: Path, folder: Path, precision: str = "fp16") -> dict[str, Any]:
    """Build the U-Net stripped, in a copy of the bundle; run it; change weights in the graph; run it again.

    Args:
        bundle: with graphs of that precision or not; they are made where they lack.
        folder: where the copy goes; it is removed at the end.

    Returns:
        The engine's relative L2 to ONNX Runtime on the same graph before and after, how far the outputs moved, bytes of
        the plan and of the weights it does not hold.

    Raises:
        UserError: it is not built here.
        RuntimeError: the engine did not take the changed weights.
    """
    from ...export.engines.bundle_engines import build_engines

    copy = folder / "stripped"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(bundle, copy)
    try:
        target = target_here(Bundle.open(bundle, verify=False))
        (engine,) = build_engines(copy, target, precision=precision, stages=[STAGE], stripped=True)
        if not engine.stripped:
            raise RuntimeError("the builder was asked for an engine without weights and says it has them")
        before = _both(copy, engine.flavour, precision)
        changed = scale_last_product(copy, precision)
        after = _both(copy, engine.flavour, precision)
        files = Bundle.open(copy, verify=False).manifest.files
        result: dict[str, Any] = {
            "plan_bytes": files[engine.file].bytes,
            "weight_bytes": files[f"{stage_graph(Bundle.open(copy), STAGE, precision).file}.data"].bytes,
            "relative_l2": relative_l2(*before),
            "changed": changed,
            "relative_l2_after_refit": relative_l2(*after),
            "moved": relative_l2(after[0], before[0]),
        }
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    if result["relative_l2_after_refit"] > 0.5 * relative_l2(before[1], after[1]):
        raise RuntimeError(f"the engine did not take the changed weights: {result}")
    return result


def _both(bundle_path: Path, flavour: str, precision: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """The engine's prediction and ONNX Runtime's of the same graph, for one input."""
    from ...runtime.gpu.entry import load_engine

    bundle = Bundle.open(bundle_path)
    case = next(case for case in Cases(bundle).of(STAGE))
    dims, graph = dims_of(bundle, case.dims), stage_graph(bundle, STAGE, precision)
    engine = load_engine(flavour, bundle, STAGE, dims, None, precision)
    exact = OnnxCpuSession(bundle.file(graph.file), graph, dims)
    found, expected = (run_session(session, case.inputs)["noise_pred"] for session in (engine, exact))
    return found, expected


def scale_last_product(bundle_path: Path, precision: str) -> str:
    """Multiply the weights of the U-Net's last product by :data:`FACTOR` in its file, and record the file's new hash.

    Returns:
        The name of the weights.

    Raises:
        UserError: the graph has no product with weights of its own.
    """
    import onnx
    from onnx import helper

    bundle = Bundle.open(bundle_path, verify=False)
    path = bundle.file(stage_graph(bundle, STAGE, precision).file)
    graph = onnx.load(str(path), load_external_data=False).graph
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.external_data}
    products = [
        name
        for node in graph.node
        if node.op_type in ("Conv", "MatMul", "Gemm")
        for name in node.input[1:2]
        if name in weights
    ]
    if not products:
        raise UserError(f"{path.name} has no product whose weights lie in a file: choose another precision.")
    tensor = weights[products[-1]]
    place = {entry.key: entry.value for entry in tensor.external_data}
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    data = path.with_name(place["location"])
    held = np.memmap(data, dtype, "r+", int(place.get("offset", 0)), (int(np.prod(tensor.dims)),))
    held[:] = (held * FACTOR).astype(dtype)
    held.flush()
    name = data.relative_to(bundle.path).as_posix()
    manifest = bundle.manifest
    changed = dataclasses.replace(manifest, files=manifest.files | hash_files(bundle.path, [name]))
    (bundle.path / MANIFEST_NAME).write_text(changed.to_json(), encoding="utf-8")
    return tensor.name
