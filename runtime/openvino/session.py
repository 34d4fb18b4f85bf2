"""Sessions in OpenVINO's processor plug-in: the faster one on most processors, and the one with bf16 where it exists.

Needs the extra ``[openvino]``. Like every session, its inputs and outputs are persistent NumPy arrays; OpenVINO reads
and writes them in place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...errors import CancelledError, UserError
from ..bundle.graph_source import GraphSource
from ..bundle.manifest import StageSpec
from ..bundle.typed_json import MANIFEST_NAME
from ..install import install_hint
from ..session import Array, default_threads, resolve_shape
from ..stage_failure import stage_failures, stage_of
from .graph_in_memory import read_in_memory
from .shared_prefix import SharedPrefixGraph, cut_before_text, same_cut

HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
"""OpenVINO's name of the precision that a float32 graph is computed in."""


def runtime() -> Any:
    """The openvino module.

    Raises:
        UserError: it is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise UserError(f"device openvino needs OpenVINO ({error}): {install_hint('openvino')}.") from None
    return openvino


@cache
def core() -> Any:
    """OpenVINO's core, one for the whole life of the process.

    Its processor plug-in gives the thread that loads it an alternate signal stack and unmaps that stack when the core
    goes. Where another thread closes it, or cores are not closed in reverse order, the thread keeps the unmapped one,
    and the next Ctrl-C there ends the process with a segmentation fault.
    """
    return runtime().Core()


def native_precisions() -> tuple[str, ...]:
    """The precisions this processor computes in; others would be computed in float32."""
    found = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(name for name in HINTS if name.upper() in found)


def check_precision(precision: str) -> None:
    """Refuse what the processor cannot do: OpenVINO would silently compute in float32, no faster and no smaller.

    Raises:
        UserError: no such precision here.
    """
    if precision not in HINTS:
        raise UserError(f"OpenVINO runs float32 graphs in {', '.join(HINTS)}, not {precision}: choose one of these.")
    if precision not in native_precisions():
        need = {"bf16": "AVX512-BF16 or AMX-BF16", "fp16": "AMX-FP16 or ARM's FP16"}[precision]
        raise UserError(
            f"this processor has no {precision} instructions ({need}), OpenVINO would compute in float32 instead: "
            "use --precision fp32."
        )


class Graph(Protocol):
    """A compiled graph with its tensors."""

    def set_tensor(self, name: str, tensor: Any) -> None: ...

    def steps(self) -> Iterator[Callable[[], None]]: ...

    def cancel(self) -> None: ...


class WholeGraph:
    """A graph that runs in one step."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self.set_tensor = request.set_tensor
        self.cancel = request.cancel

    def steps(self) -> Iterator[Callable[[], None]]:
        yield lambda: self._request.infer(share_inputs=True)


class OpenVinoSession:
    """One stage in OpenVINO on the processor.

    The graph is compiled for fixed sizes: :meth:`allocate` with other sizes compiles it again.

    Args:
        graph: of a bundle, or an ONNX file with its weights beside it; float32, or quantised.
        stage: names, dtypes and shapes, from the manifest.
        dims: sizes of dynamic dimensions.
        threads: None leaves the choice to OpenVINO (one per physical core).
        precision: what float32 operations are computed in: fp32, or bf16 and fp16 where the processor has them.
        cache: folder for compiled graphs; None: nothing is written. A full U-Net takes as much there as its weights.
        textless: inputs that are the same for all guidance branches; what reads nothing else is computed once for rows
            that agree in them, see :mod:`.shared_prefix`.

    Raises:
        UserError: OpenVINO is not installed, the processor lacks the precision, or the graph is not what the manifest
            says.
    """

    def __init__(
        self,
        graph: GraphSource | Path,
        stage: StageSpec,
        dims: Mapping[str, int] | None = None,
        threads: int | None = None,
        *,
        precision: str = "fp32",
        cache: Path | None = None,
        textless: Collection[str] = (),
    ) -> None:
        self._openvino = runtime()
        check_precision(precision)
        self._config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": HINTS[precision], "PERFORMANCE_HINT": "LATENCY"}
        threads = threads or default_threads()
        if threads:
            self._config["INFERENCE_NUM_THREADS"] = threads
        if cache is not None:
            self._config["CACHE_DIR"] = os.fspath(cache)
        self._textless = textless
        source = GraphSource.of(graph)
        self._file_name, self._stage = source.file_name, stage
        try:
            self._model = read_in_memory(core(), self._openvino, source)
        except RuntimeError as error:
            raise self._refusal(error) from None
        self._check_names()
        self._cancelled = False
        self._dims: dict[str, int] | None = None
        self.allocate(dims or {})

    def _refusal(self, error: RuntimeError) -> UserError:
        last_line = (str(error).strip().splitlines() or ["no reason given"])[-1][:300]
        return UserError(
            f"OpenVINO {self._openvino.__version__} cannot load {self._file_name} ({last_line}): "
            "update openvino, export the bundle again, or use --device cpu."
        )

    def _check_names(self) -> None:
        """The manifest describes this graph; otherwise a mismatch surfaces as a cryptic binding error."""
        for kind, ports, specs in (
            ("inputs", self._model.inputs, self._stage.inputs),
            ("outputs", self._model.outputs, self._stage.outputs),
        ):
            found = {port.any_name: (port.element_type.to_dtype().name, port.partial_shape) for port in ports}
            fits = found.keys() == {spec.name for spec in specs} and all(
                found[spec.name][0] == spec.dtype
                and found[spec.name][1].compatible(
                    self._openvino.PartialShape([size if isinstance(size, int) else -1 for size in spec.shape])
                )
                for spec in specs
            )
            if not fits:
                raise UserError(
                    f"{self._file_name} has other {kind} than {MANIFEST_NAME} says: export the bundle again."
                )

    def allocate(self, dims: Mapping[str, int]) -> None:
        """Compile for these dynamic sizes and make the persistent buffers, unless they already fit."""
        used = {size for spec in self._stage.inputs + self._stage.outputs for size in spec.shape}
        wanted = {name: size for name, size in dims.items() if name in used}
        if wanted == self._dims:
            return
        # The compiled graph of the old sizes goes first: both would need twice the memory.
        self._graph: Graph | None = None
        self._dims = None
        try:
            self._graph = self._compiled(dims)
        except RuntimeError as error:
            raise self._refusal(error) from None
        self._dims = wanted
        self.inputs: dict[str, Array] = {}
        self.outputs: dict[str, Array] = {}
        for spec in self._stage.inputs:
            self.bind_input(spec.name, np.zeros(resolve_shape(spec, dims), spec.dtype))
        for spec in self._stage.outputs:
            buffer = np.empty(resolve_shape(spec, dims), spec.dtype)
            self._graph.set_tensor(spec.name, self._openvino.Tensor(buffer, shared_memory=True))
            self.outputs[spec.name] = buffer

    def _compiled(self, dims: Mapping[str, int]) -> Graph:
        """The graph for these sizes: in two parts where rows may share the first, else as a whole."""
        rows = dims.get("rows", 1)
        if self._textless and rows > 1 and self._model.is_dynamic():
            one_row, all_rows = (
                cut_before_text(self._fixed({**dims, "rows": size}), self._textless) for size in (1, rows)
            )
            if one_row is not None and all_rows is not None and same_cut(one_row, all_rows, rows):
                return SharedPrefixGraph(one_row, all_rows, self._request)
        return WholeGraph(self._request(self._fixed(dims)))

    def _fixed(self, dims: Mapping[str, int]) -> Any:
        """A copy of the graph for these sizes; what follows from them alone is constant."""
        from openvino.passes import ConstantFolding, Manager

        model = self._model.clone()
        if model.is_dynamic():
            model.reshape({spec.name: list(resolve_shape(spec, dims)) for spec in self._stage.inputs})
        passes = Manager()
        passes.register_pass(ConstantFolding())
        passes.run_passes(model)
        return model

    def _request(self, model: Any) -> Any:
        return core().compile_model(model, "CPU", self._config).create_infer_request()

    def bind_input(self, name: str, array: Array) -> None:
        if not array.flags.c_contiguous:
            raise ValueError(f"input {name}: a bound array must be contiguous")
        bound = self.inputs.get(name)
        if bound is not None and (bound.shape, bound.dtype) != (array.shape, array.dtype):
            raise ValueError(
                f"input {name}: {array.dtype} {list(array.shape)} in place of {bound.dtype} {list(bound.shape)}"
            )
        assert self._graph is not None
        self._graph.set_tensor(name, self._openvino.Tensor(array, shared_memory=True))
        self.inputs[name] = array

    def run(self) -> None:
        assert self._graph is not None
        for step in self._graph.steps():
            if self._cancelled:
                raise CancelledError
            with stage_failures(stage_of(self._file_name), "OpenVINO", lambda: self._cancelled):
                step()

    def cancel(self) -> None:
        """Make a run in another thread, or the next one, end at its next operation with :class:`CancelledError`."""
        self._cancelled = True
        if self._graph is not None:
            self._graph.cancel()

    def resume(self) -> None:
        """Take a cancellation back: the next run is a run again."""
        self._cancelled = False
