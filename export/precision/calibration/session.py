"""The session of an observed graph: the pipeline runs it like any other, and its activations are noted on the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....errors import UserError, first_line
from ....runtime.bundle.manifest import StageSpec
from ....runtime.onnx_session import make_session
from ....runtime.session import resolve_shape
from ....runtime.stage_failure import stage_failures, stage_of
from .graph import LARGEST, VALUES, ObservedGraph, thinned
from .ranges import ActivationRange

Array = NDArray[Any]


class ObservedSession:
    """One stage in ONNX Runtime's CPU provider, in as little memory as it takes.

    Args:
        graph: with its additional outputs.
        stage: the outputs that the pipeline wants.
        dims: sizes of dynamic dimensions.
        threads: None: one per physical core.
        ranges: activation -> what is known of it; filled by every run.
    """

    def __init__(
        self,
        graph: ObservedGraph,
        stage: StageSpec,
        dims: Mapping[str, int],
        threads: int | None,
        ranges: dict[str, ActivationRange],
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads or 0
        options.enable_cpu_mem_arena = False
        # Nodes in the order of the graph: by default those that lead to outputs of the graph come last, and every
        # activation would wait for them.
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            self._session = make_session(graph.source, options, providers=["CPUExecutionProvider"])
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load {graph.source.file_name} ({first_line(error)}): "
                "update onnxruntime, or leave --calibrate out."
            ) from None
        self._graph, self._stage, self._ranges = graph, stage, ranges
        self._run_options = onnxruntime.RunOptions()
        self._dims: dict[str, int] | None = None
        self.inputs: dict[str, Array] = {}
        self.outputs: dict[str, Array] = {}
        self.allocate(dims)

    def allocate(self, dims: Mapping[str, int]) -> None:
        if dict(dims) == self._dims:
            return
        self._dims = dict(dims)
        self.inputs = {spec.name: np.zeros(resolve_shape(spec, dims), spec.dtype) for spec in self._stage.inputs}
        self.outputs = {spec.name: np.empty(resolve_shape(spec, dims), spec.dtype) for spec in self._stage.outputs}

    def bind_input(self, name: str, array: Array) -> None:
        self.inputs[name] = array

    def run(self) -> None:
        observed = self._graph.observed
        names = [*self.outputs, *(f"{name}{end}" for name in observed for end in (LARGEST, VALUES))]
        with stage_failures(
            stage_of(self._graph.source.file_name), "ONNX Runtime", lambda: bool(self._run_options.terminate)
        ):
            given = self._session.run(names, self.inputs, self._run_options)
        found = dict(zip(names, given, strict=True))
        for name, array in self.outputs.items():
            array[...] = found[name]
        for name in observed:
            self._ranges[name].add(float(found[name + LARGEST]), thinned(found[name + VALUES], self._graph.quota))

    def cancel(self) -> None:
        self._run_options.terminate = True

    def resume(self) -> None:
        self._run_options.terminate = False
