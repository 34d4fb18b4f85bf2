"""One stage -> one ONNX file with external data, checked against torch through ONNX Runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from ..errors import UserError
from ..runtime.bundle.manifest import StageSpec, TensorSpec
from ..runtime.session import OnnxCpuSession
from .unet_stages import StageExport

# Native Attention, GroupNormalization and Gelu: fewer nodes, and engines can fuse them.
OPSET = 23
# Relative L2 against torch that float32 graphs may have in any case.
PARITY_LIMIT = {"fp32": 2e-5}
# A graph further from torch is accepted where float64 shows that it is rounding: the graph's distance from float64 may
# be so many times that of torch's own float32, which itself may not exceed the largest noise.
NOISE_FACTOR = 2.0
LARGEST_NOISE = 1e-3


@dataclass
class Reference:
    """What torch gives for a stage's example inputs."""

    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Parity:
    """How far a graph is from torch: the largest relative L2 over its outputs."""

    relative_l2: float
    """Graph to torch, both in float32."""
    graph_noise: float | None = None
    """Graph in float32 to torch in float64; None: the first number was small enough, and this was not measured."""
    torch_noise: float | None = None
    """Torch in float32 to torch in float64; None as above."""


def torch_reference(stage: StageExport) -> Reference:
    """Run the stage in torch on its example inputs."""
    return Reference(
        {name: tensor.numpy() for name, tensor in stage.inputs.items()}, _run_torch(stage, list(stage.inputs.values()))
    )


def _run_torch(stage: StageExport, inputs: list[torch.Tensor]) -> dict[str, NDArray[Any]]:
    with torch.no_grad():
        result = stage.module(*stage.arrange(inputs))
    tensors = [result] if isinstance(result, torch.Tensor) else list(result)
    return {name: tensor.numpy() for name, tensor in zip(stage.outputs, tensors, strict=True)}


def write_graph(stage: StageExport, path: Path, sizes: Mapping[str, Any]) -> None:
    """Export a stage; its weights go to ``<path>.data`` beside it.

    Raises:
        RuntimeError: the exporter wrote another opset or other names than asked for.
    """
    dynamic_shapes = None
    if stage.axes:
        per_input = [{axis: sizes[size] for axis, size in stage.axes.get(name, {}).items()} for name in stage.inputs]
        dynamic_shapes = stage.arrange(per_input)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            stage.module.eval(),
            stage.arrange(list(stage.inputs.values())),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(stage.inputs),
            output_names=stage.outputs,
            dynamic_shapes=dynamic_shapes,
            verbose=False,
        )
        assert program is not None
        _strip_traces(program.model)
        path.parent.mkdir(parents=True, exist_ok=True)
        program.save(path, external_data=True)
    # By path: a graph with external data can pass 2 GB, and its data file is checked too.
    onnx.checker.check_model(str(path))
    graph = onnx.load(str(path), load_external_data=False)
    opsets = {entry.domain: entry.version for entry in graph.opset_import}
    names = [value.name for value in (*graph.graph.input, *graph.graph.output)]
    if opsets.get("") != OPSET or names != [*stage.inputs, *stage.outputs]:
        raise RuntimeError(f"the exporter wrote opset {opsets.get('')} with {names[:4]}... for stage {stage.name}")


def stage_spec(stage: StageExport, reference: Reference, file: str, precision: str) -> StageSpec:
    """Names, dtypes and shapes of a stage, for the manifest."""

    def specs(arrays: Mapping[str, NDArray[Any]]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                name,
                str(array.dtype),
                tuple(stage.axes.get(name, {}).get(axis, size) for axis, size in enumerate(array.shape)),
            )
            for name, array in arrays.items()
        )

    return StageSpec(file, precision, specs(reference.inputs), specs(reference.outputs), OPSET)


def compare_with_torch(
    path: Path, spec: StageSpec, reference: Reference, stage: StageExport | None = None, size: str = ""
) -> Parity:
    """Run the written graph in ONNX Runtime and compare all outputs with torch's.

    Both are float32 and round in another order. Where they differ by more than :data:`PARITY_LIMIT`, torch runs once
    more in float64, and the graph is accepted when it is about as close to that as torch's float32 is.

    Args:
        stage: what the graph was written from; None: the limit is fixed. Its module is in float32 again afterwards.
        size: of the pictures, for the message: "256x256".

    Raises:
        UserError: an output is not finite, is constant, or is further from torch than its precision allows.
    """
    outputs = _run_graph(path, spec, reference)
    for name, expected in reference.outputs.items():
        got = outputs[name]
        if not np.isfinite(got).all() or not np.isfinite(expected).all() or got.std() == 0:
            raise UserError(f"stage {path.stem}: output {name} is not finite or constant; the weights may be damaged.")
    parity = Parity(_distance(outputs, reference.outputs))
    limit = PARITY_LIMIT[spec.precision]
    if parity.relative_l2 <= limit:
        return parity
    where = f"stage {path.stem}{f' at {size} pixels' if size else ''}"
    message = f"{where} differs from torch by {parity.relative_l2:.1e} relative L2 (allowed {limit:.0e}"
    if stage is None:
        raise UserError(f"{message}): try other versions of torch or onnxruntime; no bundle was written.")
    exact = _float64_outputs(stage, reference)
    parity = Parity(parity.relative_l2, _distance(outputs, exact), _distance(reference.outputs, exact))
    assert parity.graph_noise is not None and parity.torch_noise is not None
    message += f"; against float64, the graph {parity.graph_noise:.1e} and torch {parity.torch_noise:.1e})"
    if not parity.torch_noise <= LARGEST_NOISE:
        raise UserError(
            f"{message}: float32 does not hold this stage, which may differ by {LARGEST_NOISE:.0e} from float64; the "
            "weights may be damaged, or the size too far from the one it was trained at. No bundle was written."
        )
    if not parity.graph_noise <= NOISE_FACTOR * parity.torch_noise:
        raise UserError(
            f"{message}: this is no rounding, for which {NOISE_FACTOR:g} times torch's own would be allowed; try other "
            "versions of torch or onnxruntime. No bundle was written."
        )
    return parity


def _run_graph(path: Path, spec: StageSpec, reference: Reference) -> dict[str, NDArray[Any]]:
    """The graph's outputs in ONNX Runtime, for the reference's inputs; the session is gone afterwards."""
    arrays = reference.inputs | reference.outputs
    dims = {
        size: arrays[tensor.name].shape[axis]
        for tensor in (*spec.inputs, *spec.outputs)
        for axis, size in enumerate(tensor.shape)
        if isinstance(size, str)
    }
    session = OnnxCpuSession(path, spec, dims)
    for name, array in reference.inputs.items():
        session.inputs[name][...] = array
    session.run()
    return {name: session.outputs[name].copy() for name in reference.outputs}


def _float64_outputs(stage: StageExport, reference: Reference) -> dict[str, NDArray[Any]]:
    """What torch gives in float64 for the same inputs."""
    tensors = [torch.from_numpy(array) for array in reference.inputs.values()]
    # In place: every float32 number is a float64 number too, and comes back as it was.
    stage.module.double()
    try:
        return _run_torch(stage, [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors])
    finally:
        stage.module.float()


def _distance(arrays: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> float:
    """The largest relative L2 over all outputs, in float64."""
    return max(
        float(np.linalg.norm(arrays[name].astype(np.float64) - wanted) / np.linalg.norm(wanted.astype(np.float64)))
        for name, wanted in expected.items()
    )


def _strip_traces(model: Any) -> None:
    """Drop what the exporter notes on every node (source lines with this machine's paths): half of a small file."""
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in graphs:
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporter chatter about packages and shapes that do not concern the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
