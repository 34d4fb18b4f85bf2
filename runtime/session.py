"""Sessions: one small protocol for every backend, and ONNX Runtime on the CPU, the embedded default.

Inputs and outputs are bound once to persistent buffers; ``run()`` then allocates nothing on our side.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError, first_line
from .bundle.graph_source import GraphSource
from .bundle.manifest import StageSpec, TensorSpec
from .bundle.typed_json import MANIFEST_NAME
from .onnx_session import make_session
from .stage_failure import stage_failures, stage_of

Array = NDArray[Any]


class Session(Protocol):
    """A loaded stage. Write into ``inputs``, call ``run()``, read ``outputs`` (overwritten by the next run)."""

    @property
    def inputs(self) -> Mapping[str, Array]: ...

    @property
    def outputs(self) -> Mapping[str, Array]: ...

    def bind_input(self, name: str, array: Array) -> None:
        """Read this input from `array` (same shape and dtype, contiguous) from the next run on."""

    def run(self) -> None: ...

    def allocate(self, dims: Mapping[str, int]) -> None:
        """Make the persistent buffers for these dynamic sizes, unless they already fit."""

    def cancel(self) -> None:
        """Make a run in another thread, or the next one, end early with :class:`CancelledError`."""

    def resume(self) -> None:
        """Take a cancellation back: the next run is a run again."""


def resolve_shape(spec: TensorSpec, dims: Mapping[str, int]) -> tuple[int, ...]:
    """Sizes of a tensor, dynamic names looked up in `dims`; ``latent_height/2`` is half of ``latent_height``."""
    return tuple(size if isinstance(size, int) else dynamic_size(size, dims) for size in spec.shape)


def dynamic_size(name: str, dims: Mapping[str, int]) -> int:
    """The size behind a name, or behind a part of one: ``latent_height/2``."""
    whole, _, divisor = name.partition("/")
    return dims[name] if name in dims else dims[whole] // int(divisor or 1)


THREADS_VARIABLE = "CONSISTI2V_THREADS"
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
}


def _fixed(shape: Sequence[int | str | None]) -> tuple[int | None, ...]:
    """A shape without the names of its dynamic sizes, which a graph may spell as formulas."""
    return tuple(size if isinstance(size, int) else None for size in shape)


def default_threads() -> int | None:
    """Processor threads of a stage that is not told how many: the variable ``CONSISTI2V_THREADS``, for containers that
    see more cores than they may use; None leaves the choice to the library.

    Raises:
        UserError: the variable is no whole number from 1 on.
    """
    named = os.environ.get(THREADS_VARIABLE)
    if not named:
        return None
    if not (named.isascii() and named.isdigit() and 1 <= len(named) <= 4 and int(named) >= 1):
        raise UserError(f"the variable {THREADS_VARIABLE} is {named[:20]!r}: set it to a whole number from 1 on.")
    return int(named)


class OnnxCpuSession:
    """One stage in ONNX Runtime's CPU provider.

    Args:
        graph: of a bundle, or an ONNX file with its weights beside it.
        stage: names, dtypes and shapes, from the manifest.
        dims: sizes of dynamic dimensions.
        threads: intra-op threads; None: :func:`default_threads`, else ONNX Runtime's choice (one per physical core).
        lean: hold no second copy of the weights and no arena: about half the memory, slower. For single runs.
    """

    def __init__(
        self,
        graph: GraphSource | Path,
        stage: StageSpec,
        dims: Mapping[str, int] | None = None,
        threads: int | None = None,
        *,
        lean: bool = False,
    ) -> None:
        import onnxruntime

        source = GraphSource.of(graph)
        if stage.precision == "bf16":
            raise UserError(
                f"{source.file_name} is a bf16 graph, and ONNX Runtime has no bf16 operators for the processor: "
                "use --precision fp32 or fp16 there."
            )
        options = onnxruntime.SessionOptions()
        # Its own log goes straight to the terminal, with the graph's names in it; what matters is raised as well.
        options.log_severity_level = 4
        options.intra_op_num_threads = threads or default_threads() or 0
        disabled: list[str] = []
        if lean:
            options.enable_cpu_mem_arena = False
            # Nodes in the order of the graph: by default those that lead to its outputs come last, and what they read
            # would wait for them.
            options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
            options.add_session_config_entry("session.disable_prepacking", "1")
            # They would keep weights that a graph casts or scales as constants of their own.
            disabled += ["ConstantFolding", "FuseFp16InitializerToFp32NodeTransformer"]
        try:
            self._session = make_session(
                source, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
            )
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load {source.file_name} ({first_line(error)}): "
                "update onnxruntime, or export the bundle again."
            ) from None
        self._check_names(source.file_name, stage)
        self._run_options = onnxruntime.RunOptions()
        self._run_options.log_severity_level = 4
        self._stage, self._name = stage, stage_of(source.file_name)
        self._dims: dict[str, int] | None = None
        with self._failures():
            self.allocate(dims or {})

    def _check_names(self, file_name: str, stage: StageSpec) -> None:
        """The manifest describes this graph; otherwise a mismatch surfaces as a cryptic binding error."""
        for kind, graph, specs in (
            ("inputs", self._session.get_inputs(), stage.inputs),
            ("outputs", self._session.get_outputs(), stage.outputs),
        ):
            found = {tensor.name: (_DTYPES.get(tensor.type, tensor.type), _fixed(tensor.shape)) for tensor in graph}
            if found != {spec.name: (spec.dtype, _fixed(spec.shape)) for spec in specs}:
                raise UserError(f"{file_name} has other {kind} than {MANIFEST_NAME} says: export the bundle again.")

    def allocate(self, dims: Mapping[str, int]) -> None:
        """Make the persistent buffers for these dynamic sizes, unless they already fit."""
        shapes = [size for spec in self._stage.inputs + self._stage.outputs for size in spec.shape]
        used = {size.partition("/")[0] for size in shapes if isinstance(size, str)}
        wanted = {name: size for name, size in dims.items() if name in used}
        if wanted == self._dims:
            return
        self._dims = wanted
        self._binding = self._session.io_binding()
        self.inputs: dict[str, Array] = {}
        self.outputs: dict[str, Array] = {}
        for spec in self._stage.inputs:
            self.bind_input(spec.name, np.zeros(resolve_shape(spec, dims), spec.dtype))
        for spec in self._stage.outputs:
            buffer = np.empty(resolve_shape(spec, dims), spec.dtype)
            self._binding.bind_output(spec.name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
            self.outputs[spec.name] = buffer

    def bind_input(self, name: str, array: Array) -> None:
        if not array.flags.c_contiguous:
            raise ValueError(f"input {name}: a bound array must be contiguous")
        self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self.inputs[name] = array

    def run(self) -> None:
        with self._failures():
            self._session.run_with_iobinding(self._binding, self._run_options)

    def _failures(self) -> AbstractContextManager[None]:
        return stage_failures(self._name, "ONNX Runtime", lambda: bool(self._run_options.terminate))

    def cancel(self) -> None:
        """Make a run in another thread, or the next one, end at its next operation with :class:`CancelledError`."""
        self._run_options.terminate = True

    def resume(self) -> None:
        """Take a cancellation back: the next run is a run again."""
        self._run_options.terminate = False
