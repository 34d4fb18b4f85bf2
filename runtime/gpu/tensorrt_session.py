"""TensorRT engines, TensorRT for RTX and TensorRT alike: their Python interfaces are the same but for the module name.

Checked against tensorrt_rtx 1.7.1.116: a context without memory of its own (USER_MANAGED) takes the shared scratch
block; weights are loaded apart from the plan, so that a stage can drop them and keep its compiled kernels.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import Any
from weakref import WeakSet

from ...errors import BackendError, UserError
from ..bundle.engines import build_command
from ..bundle.graph_source import GraphSource
from ..bundle.manifest import EngineSpec, StageSpec, TensorSpec
from ..session import dynamic_size, resolve_shape
from ..stage_failure import stage_failures, stage_of
from .device import Gpu
from .device_session import DeviceSession, check_same_tensors
from .engine_refit import refit_from_onnx
from .jit_cache import JitCache
from .memory import DeviceArray, SharedWorkspace, WeightResidency

_log = logging.getLogger("consisti2v_rt")

MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "UINT8": "uint8",
}


class Engine:
    """A plan on the GPU: the weights, shared by every session over it.

    Args:
        plan: the plan's file, or what reads it; it is read again when the weights come back.
        spec: what the manifest says about it.
        module: tensorrt_rtx or tensorrt.
        residency: whose weights may be on the GPU.
        onnx: the graph it was built from, of a bundle or a file; a stripped engine takes its weights from there.
        jit_cache: kernels compiled on this machine before; None: compiled anew.

    Raises:
        BackendError: the library refuses the plan; its own reason is in the sentence.
    """

    def __init__(
        self,
        plan: Path | Callable[[], Any],
        spec: EngineSpec,
        module: Any,
        residency: WeightResidency,
        onnx: GraphSource | Path,
        jit_cache: JitCache | None = None,
    ) -> None:
        self.name = plan.name if isinstance(plan, Path) else PurePosixPath(spec.file).name
        self._read = plan.read_bytes if isinstance(plan, Path) else plan
        self.spec, self.module, self._residency, self._onnx = spec, module, residency, GraphSource.of(onnx)
        self._jit_cache = jit_cache
        self.sessions: WeakSet[TensorRTSession] = WeakSet()
        self._logger = _collecting_logger(module)
        self._runtime = module.Runtime(self._logger)
        self._engine: Any | None = None
        self.context_version = 0
        """Counts up when contexts made before cannot be used any more."""
        self.weights_version = 0
        """Counts up when the weights leave the GPU or come back, each time to another place."""
        self._load()

    def _load(self) -> None:
        self._residency.use(self)
        # Apart from the kernels, so that release() can drop the weights alone (TensorRT for RTX 1.7).
        # A stripped engine has none to load.
        self._deferred = hasattr(self._runtime, "defer_weights_loading") and not self.spec.stripped
        if self._deferred:
            self._runtime.defer_weights_loading = True
        plan = self._read()
        try:
            self._engine = self._runtime.deserialize_cuda_engine(plan)
        except Exception as error:
            # Most refusals are logged and give None; some versions raise.
            raise BackendError(self._refused((str(error).splitlines() or ["no reason given"])[0][:300])) from None
        if self._engine is None:
            raise BackendError(self._refused(self._logger.last() or "no reason given"))
        if self.spec.stripped:
            refit_from_onnx(self.module, self._engine, self._onnx, self._logger)
        # An engine built for weight streaming keeps on the GPU what fits there; others have nothing to stream.
        if getattr(self._engine, "streamable_weights_size", 0) > 0:
            self._engine.weight_streaming_budget_v2 = self._engine.get_weight_streaming_automatic_budget()
        self.context_version += 1
        self.weights_version += 1
        if self._deferred:
            self._load_weights(plan)

    def _refused(self, reason: str) -> str:
        return (
            f"{self.module.__name__} {self.module.__version__} refuses the engine {self.name} ({reason}): build "
            "it for this machine with 'consisti2v build BUNDLE --target current'."
        )

    def _load_weights(self, plan: Any) -> None:
        assert self._engine is not None
        if not self._engine.load_weights(plan):
            raise BackendError(
                f"the weights of {self.name} cannot be loaded ({self.failure()}): close other programs that use "
                "the GPU, or pass --low-vram."
            )

    @property
    def engine(self) -> Any:
        """The deserialised engine with its weights on the GPU."""
        self._residency.use(self)
        if self._engine is None:
            self._load()
        assert self._engine is not None
        if self._deferred and not self._engine.weights_loaded:
            self._load_weights(self._read())
            self.weights_version += 1
        return self._engine

    def release(self) -> None:
        """Free the weights; kernels and contexts stay where the library can keep them. Nothing may be under way."""
        self._residency.leave(self)
        if self._engine is None:
            return
        self.weights_version += 1
        if self._deferred:
            if self._engine.weights_loaded:
                self._engine.unload_weights()
        else:
            # A context keeps its engine alive, and must not outlive it.
            for session in self.sessions:
                session.forget_context()
            self._engine = None

    def create_context(self) -> Any:
        """An execution context without working memory of its own.

        Raises:
            BackendError: the library makes none, for want of memory for example.
        """
        engine, strategy = self.engine, self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if hasattr(engine, "create_runtime_config"):
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            # Compiled at the first run, not in the background: a step captured meanwhile would keep the stand-ins.
            if hasattr(self.module, "DynamicShapesKernelSpecializationStrategy"):
                eager = self.module.DynamicShapesKernelSpecializationStrategy.EAGER
                config.dynamic_shapes_kernel_specialization_strategy = eager
            if self._jit_cache is not None:
                self._jit_cache.attach(config)
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(strategy)
        if context is None:
            raise BackendError(
                f"{self.name} cannot be prepared for running ({self.failure()}): close other programs that use the "
                "GPU, or build it for this machine with 'consisti2v build BUNDLE --target current'."
            )
        return context

    def save_jit_cache(self) -> None:
        """Keep what was compiled for this card: later processes compile nothing."""
        if self._jit_cache is not None:
            self._jit_cache.save()

    def tensors(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """Inputs and outputs as the engine itself names them; dynamic sizes as in the manifest, by name."""
        engine, names = self.engine, {spec.name: spec for spec in (*self.spec.inputs, *self.spec.outputs)}
        found: dict[bool, list[TensorSpec]] = {True: [], False: []}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            sizes = tuple(engine.get_tensor_shape(name))
            known = names[name].shape if name in names else sizes
            shape = tuple(size if size >= 0 else known[axis] for axis, size in enumerate(sizes))
            spec = TensorSpec(name, _DTYPES[engine.get_tensor_dtype(name).name], shape)
            found[engine.get_tensor_mode(name) == self.module.TensorIOMode.INPUT].append(spec)
        return found[True], found[False]

    def failure(self) -> str:
        return str(self._logger.last() or "no reason given")


def load_module(backend: str) -> Any:
    """The library of a backend.

    Raises:
        ImportError: it is not installed.
    """
    return importlib.import_module(MODULES[backend])


class TensorRTSession(DeviceSession):
    """A stage through a TensorRT engine.

    Args:
        gpu: where it runs.
        engine: the plan.
        stage: the bundle's stage the engine was built from.
        dims: sizes of dynamic dimensions.
        workspace: working memory, shared with every engine on the same stream.
    """

    def __init__(
        self, gpu: Gpu, engine: Engine, stage: StageSpec, dims: Mapping[str, int], workspace: SharedWorkspace
    ) -> None:
        inputs, outputs = engine.tensors()
        check_same_tensors(engine.spec.stage, (*inputs, *outputs), stage, engine.name)
        super().__init__(gpu, inputs, outputs)
        self._engine, self._stage, self._workspace = engine, stage, workspace
        self._context: Any | None = None
        self._contexts = 0
        """How many were made."""
        self._made_for = -1
        self._workspace_version = -1
        self._profile = 0
        self._sizes: dict[str, int] = {}
        engine.sessions.add(self)
        self.allocate(dims)

    def _set_sizes(self, dims: Mapping[str, int]) -> None:
        self._profile = choose_profile(self._engine.spec, dims)
        self._sizes = dict(dims)
        self._workspace.reserve(int(self._engine.engine.get_device_memory_size_for_profile_v2(self._profile)))
        self._context = None

    def _set_address(self, name: str, array: DeviceArray) -> None:
        if self._context is None or self._made_for != self._engine.context_version:
            self._ready_context()  # takes every bound array, this one included
        elif not self._context.set_tensor_address(name, array.address):
            raise RuntimeError(f"{self._engine.name} does not take an address for {name}")

    def _ready_context(self) -> Any:
        """The context, made anew where the sizes or the engine changed."""
        engine = self._engine.engine
        if self._context is None or self._made_for != self._engine.context_version:
            self._context = self._engine.create_context()
            self._contexts += 1
            self._made_for, self._workspace_version = self._engine.context_version, -1
            if self._profile and not self._context.set_optimization_profile_async(
                self._profile, int(self._gpu.stream.handle)
            ):
                raise RuntimeError(f"{self._engine.name} has no profile {self._profile}")
            for spec in self._specs["in"]:
                shape = resolve_shape(spec, self._sizes)
                dynamic = any(size < 0 for size in engine.get_tensor_shape(spec.name))
                if dynamic and not self._context.set_input_shape(spec.name, shape):
                    raise RuntimeError(f"{self._engine.name} does not take {list(shape)} for {spec.name}")
            for name, array in self._bound.items():
                self._set_address(name, array)
        return self._context

    def prepare(self) -> None:
        with self._failures():
            self._ready_context()

    def _failures(self) -> AbstractContextManager[None]:
        return stage_failures(stage_of(PurePosixPath(self._stage.file).name), "TensorRT")

    def enqueue(self) -> None:
        with self._failures():
            context = self._ready_context()
            if self._workspace_version != self._workspace.version:
                context.set_device_memory(self._workspace.address, self._workspace.nbytes)
                self._workspace_version = self._workspace.version
            if not context.execute_async_v3(int(self._gpu.stream.handle)):
                raise RuntimeError(f"{self._engine.name} did not run: {self._engine.failure()}")

    def with_dims(self, dims: Mapping[str, int]) -> TensorRTSession:
        return TensorRTSession(self._gpu, self._engine, self._stage, dims, self._workspace)

    def forget_context(self) -> None:
        """Let go of the engine's context; the next run makes another."""
        self._context = None

    def release(self) -> None:
        self._engine.release()

    def finished(self) -> None:
        self._engine.save_jit_cache()

    @property
    def _backend_version(self) -> tuple[int, ...]:
        return self._engine.weights_version, self._workspace.version

    @property
    def context_version(self) -> int:
        return self._contexts


def choose_profile(spec: EngineSpec, dims: Mapping[str, int]) -> int:
    """Number of the profile that takes these sizes; 0 where the engine has one, or only fixed sizes.

    Raises:
        UserError: no profile takes them; the sentence names what there is.
    """
    if not spec.profiles:
        return 0
    shapes = {tensor.name: tensor.shape for tensor in spec.inputs}
    for number, profile in enumerate(spec.profiles):
        if all(
            low <= (size if isinstance(size, int) else dynamic_size(size, dims)) <= high
            for name, ranges in profile.inputs.items()
            for size, low, high in zip(shapes[name], ranges.minimum, ranges.maximum, strict=True)
        ):
            return number
    asked = ", ".join(f"{name} {size}" for name, size in dims.items())
    rows = ", ".join(str(profile.rows) for profile in spec.profiles if profile.rows is not None)
    held = f"guidance batches {rows}" if rows else "other sizes"
    raise UserError(
        f"the engine of stage {spec.stage} was built for {held}, not for {asked}: "
        f"{build_command(spec, dims)}, or ask for a size it has."
    )


def _collecting_logger(module: Any) -> Any:
    """A logger that keeps errors: the library reports failures by returning None and logging why."""

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.Severity.ERROR, module.ILogger.Severity.INTERNAL_ERROR):
                self._errors.append(" ".join(message.split()))
            elif severity == module.ILogger.Severity.WARNING:
                _log.debug("%s: %s", module.__name__, message)

        def last(self) -> str | None:
            return self._errors[-1][:300] if self._errors else None

    return Logger()
