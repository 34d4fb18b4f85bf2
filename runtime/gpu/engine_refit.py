"""Weights for engines that have none: read from the ONNX when the engine is loaded, or changed afterwards."""

from __future__ import annotations

from typing import Any

from ...errors import UserError
from ..bundle.graph_source import GraphSource
from ..files.opened_file import Bytes


def refit_from_onnx(library: Any, engine: Any, onnx: GraphSource, logger: Any) -> None:
    """Give an engine the weights of an ONNX graph; nothing of the engine may be running.

    Contexts made before stay valid. The graph has to be the one the engine was built from, with any weights.

    Args:
        library: tensorrt_rtx or tensorrt.
        engine: deserialised, built with ``--strip``.
        onnx: the graph.
        logger: of the library.

    Raises:
        UserError: the graph does not fit the engine, or lacks weights of it.
    """
    refitter = library.Refitter(engine, logger)
    parser = library.OnnxParserRefitter(refitter, logger)
    weights = load_graph(parser, onnx)
    if weights is None or not parser.refit_model_proto():
        reason = parser.get_error(0).desc() if parser.num_errors else "no reason given"
        raise UserError(_refusal(onnx, reason))
    if not refitter.refit_cuda_engine():
        missing = refitter.get_missing_weights()
        raise UserError(_refusal(onnx, f"{len(missing)} weights are missing, {missing[:1]} first"))
    # The engine takes its weights from there until now.
    del weights


def load_graph(parser: Any, source: GraphSource) -> dict[str, Bytes] | None:
    """Give a graph and its weights to a parser of TensorRT from memory; it is given no path, and opens no file.

    Args:
        parser: ``OnnxParser`` or ``OnnxParserRefitter``.
        source: the graph.

    Returns:
        The weights, which must outlive what is built from them; None where the parser refuses the graph, and says why.
    """
    weights = source.weights()
    if not parser.load_model_proto(source.model):
        return None
    for tensor in source.metadata.external:
        address = int(weights[tensor.location].ctypes.data) + tensor.offset
        if not parser.load_initializer(tensor.name, address, tensor.nbytes):
            return None
    return weights


def _refusal(onnx: GraphSource, reason: str) -> str:
    first_line = (reason.strip().splitlines() or [""])[0].rstrip(".")
    return (
        f"the weights of {onnx.file_name} do not fit the engine built from it ({first_line}): "
        "build it again with 'consisti2v build BUNDLE --target current'."
    )
