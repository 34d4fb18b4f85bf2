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

from ..runtime.errors import UserError
from ..runtime.manifest import StageSpec, TensorSpec
from ..runtime.session import OnnxCpuSession
from .stage_export import StageExport

# Native Attention, GroupNormalization and Gelu: fewer nodes, and engines can fuse them.
OPSET = 23
# Relative L2 against torch that float32 graphs must stay under.
PARITY_LIMIT = {"fp32": 2e-5}


@dataclass
class Reference:
    """What torch gives for a stage's example inputs."""

    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]


def torch_reference(stage: StageExport) -> Reference:
    """Run the stage in torch on its example inputs."""
    with torch.no_grad():
        result = stage.module(*stage.arrange(list(stage.inputs.values())))
    tensors = [result] if isinstance(result, torch.Tensor) else list(result)
    return Reference(
        {name: tensor.numpy() for name, tensor in stage.inputs.items()},
        {name: tensor.numpy() for name, tensor in zip(stage.outputs, tensors, strict=True)},
    )


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


def compare_with_torch(path: Path, spec: StageSpec, reference: Reference) -> float:
    """Run the written graph in ONNX Runtime and return the largest relative L2 over its outputs.

    Raises:
        UserError: an output is not finite, is constant, or is further from torch than its precision allows.
    """
    dims = {
        size: array.shape[axis]
        for tensor, array in zip(spec.inputs, reference.inputs.values(), strict=True)
        for axis, size in enumerate(tensor.shape)
        if isinstance(size, str)
    }
    dims |= {
        size: reference.outputs[tensor.name].shape[axis]
        for tensor in spec.outputs
        for axis, size in enumerate(tensor.shape)
        if isinstance(size, str)
    }
    session = OnnxCpuSession(path, spec, dims)
    for name, array in reference.inputs.items():
        session.inputs[name][...] = array
    session.run()
    worst = 0.0
    for name, expected in reference.outputs.items():
        got = session.outputs[name].astype(np.float64)
        if not np.isfinite(got).all() or not np.isfinite(expected).all() or got.std() == 0:
            raise UserError(f"stage {path.stem}: output {name} is not finite or constant; the weights may be damaged.")
        worst = max(worst, float(np.linalg.norm(got - expected) / np.linalg.norm(expected.astype(np.float64))))
    limit = PARITY_LIMIT[spec.precision]
    if worst > limit:
        raise UserError(
            f"stage {path.stem} differs from torch by {worst:.1e} relative L2 (allowed {limit:.0e}): "
            "try other versions of torch or onnxruntime; no bundle was written."
        )
    return worst


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
