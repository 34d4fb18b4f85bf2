"""A session of ONNX Runtime from bytes in memory: no path is given to it, and no file is mapped.

ONNX Runtime 1.24 and later copies what it needs while the session is made, and our bytes are let go then. Versions
before keep using them, so they stay as long as the session.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .bundle.graph_source import GraphSource
from .files.opened_file import Bytes


def make_session(source: GraphSource, options: Any, **others: Any) -> Any:
    """An ``onnxruntime.InferenceSession``.

    Args:
        source: the graph.
        options: ``SessionOptions`` of this session alone.
        others: further arguments, such as ``providers``.
    """
    import onnxruntime

    # Its default logger writes to the terminal what it raises as well, in colours.
    onnxruntime.set_default_logger_severity(4)

    weights, kept = source.weights(), []
    # Whatever the bytes look like, they are ONNX: that is what was looked through.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if weights and hasattr(options, "add_external_initializers_from_files_in_memory"):
        options.add_external_initializers_from_files_in_memory(
            list(weights), list(weights.values()), [len(content) for content in weights.values()]
        )
    elif weights:
        kept = _tensors(source, weights)
        options.add_external_initializers([tensor.name for tensor in source.metadata.external], kept)
    session = onnxruntime.InferenceSession(source.model, sess_options=options, **others)
    # It would make the session again from what is gone by then.
    session.disable_fallback()
    session.consisti2v_weights = kept
    return session


def _tensors(source: GraphSource, weights: dict[str, Bytes]) -> list[Any]:
    """An OrtValue over our memory for each initialiser."""
    import onnxruntime

    carriers = {1: np.float32, 10: np.float16, 11: np.float64, 7: np.int64, 6: np.int32, 12: np.uint32, 13: np.uint64}
    narrow = {4: np.uint16, 5: np.int16, 16: np.uint16}
    tensors = []
    for tensor in source.metadata.external:
        content = weights[tensor.location][tensor.offset : tensor.offset + tensor.nbytes]
        dtype = {**carriers, **narrow}.get(tensor.elem_type, np.uint8)
        array = np.array(content).view(dtype).reshape(tensor.shape)
        tensors.append(onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, tensor.elem_type))
    return tensors
