"""ONNX Runtime's CUDA provider: the fallback where no engine fits, on our stream and our buffers.

The provider takes our stream (``user_compute_stream``) and does not wait at the end of a run
(``disable_synchronize_execution_providers``), so its runs stand in order with our kernels and can be captured too.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import BackendError, UserError, first_line
from ..bundle.graph_source import GraphSource
from ..bundle.manifest import StageSpec
from ..onnx_session import make_session
from ..stage_failure import stage_failures, stage_of
from .device import Gpu
from .device_session import DeviceSession
from .memory import STORAGE, DeviceArray, WeightResidency
from .onnx_cuda_start import PROVIDER, missing_library, preload_libraries

_log = logging.getLogger("consisti2v_rt")

_LAYERS = ("Attention", "Conv", "Gemm", "GroupNormalization", "MatMul", "Pad", "Resize", "Softmax")
"""Kinds that work on whole activations: one of them on the processor costs a copy there and back every step."""
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16; NumPy has no such type to say it with


class OnnxCudaGraph:
    """A loaded graph: the weights, shared by every session over it.

    Args:
        gpu: where it runs.
        residency: whose weights may be on the GPU.
        graph: of a bundle, or an ONNX file with its weights beside it; read again when the weights come back.
        precision: of the graph; in fp32 the tensor cores' shortened float32 (TF32) is switched off.

    Raises:
        BackendError: the provider cannot be had, or cannot load the graph.
    """

    def __init__(self, gpu: Gpu, residency: WeightResidency, graph: GraphSource | Path, precision: str) -> None:
        self._gpu, self._residency, self.source, self._precision = gpu, residency, GraphSource.of(graph), precision
        self._session: Any | None = None
        self.weights_version = 0
        """Counts up when the weights leave the GPU or come back, each time to another place."""
        self.bindings: dict[int, Any] = {}
        """Of the sessions over this graph, by their identity."""
        self._load()

    @property
    def session(self) -> Any:
        """ONNX Runtime's session, its weights on the GPU."""
        self._residency.use(self)
        if self._session is None:
            self._load()
        return self._session

    def release(self) -> None:
        """Free the weights. Nothing may be under way."""
        self._residency.leave(self)
        if self._session is not None:
            self._session = None
            self.bindings.clear()  # they keep the session alive
            self.weights_version += 1

    def _load(self) -> None:
        import onnxruntime

        preload_libraries(onnxruntime)
        self._residency.use(self)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        cuda = (PROVIDER, provider_options(int(self._gpu.stream.handle), self._precision))
        try:
            session = make_session(self.source, options, providers=[cuda, "CPUExecutionProvider"])
        except UserError:
            raise
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load {self.source.file_name} on the GPU "
                f"({first_line(error)}): update onnxruntime-gpu, or pass --device cpu."
            ) from None
        # Where its libraries are missing the provider is dropped with no more than a line in the log.
        if PROVIDER not in session.get_providers():
            raise BackendError(
                f"ONNX Runtime {onnxruntime.__version__} has its CUDA provider but cannot start it "
                f"({missing_library(onnxruntime)}): install what is missing, or pass --device cpu."
            )
        elsewhere = left_on_processor(session)
        if elsewhere:
            _log.warning(
                "ONNX Runtime %s runs parts of %s on the processor (%s), which is slow: update onnxruntime-gpu.",
                onnxruntime.__version__,
                self.source.file_name,
                ", ".join(f"{count} {kind}" for kind, count in elsewhere.items()),
            )
        self._session = session
        self.weights_version += 1


class OnnxCudaSession(DeviceSession):
    """One stage in ONNX Runtime's CUDA provider.

    Args:
        gpu: where it runs.
        graph: the loaded graph.
        stage: names, dtypes and shapes, from the manifest.
        dims: sizes of dynamic dimensions.
    """

    def __init__(self, gpu: Gpu, graph: OnnxCudaGraph, stage: StageSpec, dims: Mapping[str, int]) -> None:
        import onnxruntime

        super().__init__(gpu, stage.inputs, stage.outputs)
        self._graph, self._stage = graph, stage
        self._run_options = onnxruntime.RunOptions()
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self.allocate(dims)

    def _set_sizes(self, dims: Mapping[str, int]) -> None:
        self._graph.bindings.pop(id(self), None)

    def _set_address(self, name: str, array: DeviceArray) -> None:
        binding = self._graph.bindings.get(id(self))
        if binding is not None:
            self._bind(binding, name, array)

    def _bind(self, binding: Any, name: str, array: DeviceArray) -> None:
        bind = binding.bind_input if name in self.device_inputs else binding.bind_output
        element_type: Any = _BFLOAT16 if array.dtype == "bfloat16" else STORAGE[array.dtype]
        bind(name, "cuda", 0, element_type, list(array.shape), array.address)

    def prepare(self) -> None:
        self._binding()

    def _binding(self) -> Any:
        session = self._graph.session  # loads the weights where they are gone, and the bindings are gone with them
        binding = self._graph.bindings.get(id(self))
        if binding is None:
            self._graph.bindings[id(self)] = binding = session.io_binding()
            for name, array in self._bound.items():
                self._bind(binding, name, array)
        return binding

    def enqueue(self) -> None:
        binding = self._binding()
        with stage_failures(stage_of(self._graph.source.file_name), "ONNX Runtime CUDA"):
            self._graph.session.run_with_iobinding(binding, self._run_options)

    def with_dims(self, dims: Mapping[str, int]) -> OnnxCudaSession:
        return OnnxCudaSession(self._gpu, self._graph, self._stage, dims)

    def release(self) -> None:
        self._graph.release()

    @property
    def _backend_version(self) -> tuple[int, ...]:
        return (self._graph.weights_version,)

    @property
    def context_version(self) -> int:
        return self._graph.weights_version


def left_on_processor(session: Any) -> dict[str, int]:
    """Kind -> number of the layers that the session does not run on the GPU; shapes are worked out on the processor by
    design, and do not count. Empty where this ONNX Runtime does not tell.
    """
    try:
        subgraphs = session.get_provider_graph_assignment_info()
    except Exception:
        # The method came in 2026, and asks for an option that older ones do not know.
        return {}
    elsewhere = [graph for graph in subgraphs if graph.ep_name != PROVIDER]
    return dict(Counter(node.op_type for graph in elsewhere for node in graph.get_nodes() if node.op_type in _LAYERS))


def provider_options(stream: int, precision: str) -> dict[str, str]:
    """Options of the CUDA provider: our stream, memory no larger than asked for, float32 that is float32."""
    return {
        "device_id": "0",
        "user_compute_stream": str(stream),
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0" if precision == "fp32" else "1",
    }
