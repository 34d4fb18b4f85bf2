"""Weights for engines that have none: read from the ONNX when the engine is loaded, or changed afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import UserError


def refit_from_onnx(library: Any, engine: Any, onnx: Path, logger: Any) -> None:
    """Give an engine the weights of an ONNX graph; nothing of the engine may be running.

    Contexts made before stay valid. The graph has to be the one the engine was built from, with any weights.

    Args:
        library: tensorrt_rtx or tensorrt.
        engine: deserialised, built with ``--strip``.
        onnx: the graph, its weights beside it.
        logger: of the library.

    Raises:
        UserError: the graph does not fit the engine, or lacks weights of it.
    """
    refitter = library.Refitter(engine, logger)
    parser = library.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(onnx)):
        reason = parser.get_error(0).desc() if parser.num_errors else "no reason given"
        raise UserError(_refusal(onnx, reason))
    if not refitter.refit_cuda_engine():
        missing = refitter.get_missing_weights()
        raise UserError(_refusal(onnx, f"{len(missing)} weights are missing, {missing[:1]} first"))


def _refusal(onnx: Path, reason: str) -> str:
    first_line = (reason.strip().splitlines() or [""])[0].rstrip(".")
    return (
        f"the weights of {onnx.name} do not fit the engine built from it ({first_line}): "
        "build it again with 'consisti2v build BUNDLE --target current'."
    )
