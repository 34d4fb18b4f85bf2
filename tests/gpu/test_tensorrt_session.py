"""The TensorRT session against a stand-in of the library: order of calls, shared scratch, weights, refusals.

A last test holds the stand-in against the real module: it must have no name that the real one lacks.
"""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from consisti2v_rt import UserError
from consisti2v_rt.errors import BackendError
from consisti2v_rt.runtime.bundle.manifest import EngineSpec, ProfileSpec, ShapeRange, StageSpec, TensorSpec
from consisti2v_rt.runtime.gpu.jit_cache import JitCache, read_cache
from consisti2v_rt.runtime.gpu.memory import SharedWorkspace, WeightResidency
from consisti2v_rt.runtime.gpu.tensorrt_session import Engine, TensorRTSession

SPEC = EngineSpec(
    stage="unet",
    file="unet.plan",
    target="sm89",
    backend="tensorrt-rtx",
    version="1.7",
    precision="fp16",
    compute_capabilities=("8.9",),
    onnx_sha256="0",
    inputs=(TensorSpec("sample", "float32", ("rows", 4)),),
    outputs=(TensorSpec("noise_pred", "float32", ("rows", 4)),),
    profiles=tuple(ProfileSpec(n, {"sample": ShapeRange((n, 4), (n, 4), (n, 4))}) for n in (1, 2)),
)
STAGE = StageSpec("unet.onnx", "fp16", SPEC.inputs, SPEC.outputs, 23)


class Context:
    def __init__(self, engine: CudaEngine) -> None:
        self._engine, self._library = engine, engine.library
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._library.calls.append(f"profile {index}")
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._library.calls.append(f"shape {name} {shape}")
        return self._library.takes_shapes

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._library.calls.append(f"address {name}")
        self.addresses[name] = memory
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        self._library.calls.append("scratch")
        self.memory = (memory, size)

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self._engine.weights_loaded and self.memory[1] >= 4096, "ran without weights or working memory"
        self._library.calls.append("run")
        if self._library.fails:
            self._library.logger.log(self._library.ILogger.Severity.ERROR, "out of something")
            return False
        gpu, addresses = self._library.gpu, dict(self.addresses)
        gpu.copy(addresses["noise_pred"], addresses["sample"], 16, gpu.stream)
        return True


class CudaEngine:
    num_io_tensors = 2
    streamable_weights_size = 0
    weight_streaming_budget_v2 = 0
    _shape = (-1, 4)

    def __init__(self, library: Library) -> None:
        self.library, self.weights_loaded = library, False

    def load_weights(self, blob: bytes) -> bool:
        self.library.calls.append("load weights")
        self.weights_loaded = self.library.has_room
        return self.library.has_room

    def unload_weights(self) -> bool:
        self.library.calls.append("unload weights")
        self.weights_loaded = False
        return True

    def get_weight_streaming_automatic_budget(self) -> int:
        return 0

    def create_runtime_config(self) -> Any:
        strategy: list[Any] = []
        return SimpleNamespace(set_execution_context_allocation_strategy=strategy.append, strategy=strategy)

    def create_execution_context(self, config: Any) -> Context | None:
        assert config.strategy == ["user managed"]
        # In the background the step would be captured with the kernels that stand in until then.
        assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
        self.library.calls.append("context")
        if not self.library.has_room:
            self.library.logger.log(self.library.ILogger.Severity.ERROR, "out of memory")
            return None
        self.library.contexts.append(Context(self))
        return self.library.contexts[-1]

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        return 4096 * (index + 1)

    def get_tensor_name(self, index: int) -> str:
        return ("sample", "noise_pred")[index]

    def get_tensor_shape(self, name: str) -> tuple[int, int]:
        return self._shape

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="FLOAT")

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "sample" else "out"


class Library:
    """What is used of the module ``tensorrt_rtx``."""

    __name__, __version__ = "tensorrt_rtx", "1.7"
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    TensorIOMode = SimpleNamespace(INPUT="in")

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0, WARNING=2)

    def __init__(self, gpu: Any) -> None:
        self.gpu, self.calls, self.contexts = gpu, [], []
        self.refuses = self.fails = False
        self.takes_shapes = self.defers = self.has_room = True
        self.engine = CudaEngine(self)

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        self.logger = logger
        deferral = {"defer_weights_loading": False} if self.defers else {}
        return SimpleNamespace(deserialize_cuda_engine=self._deserialize, **deferral)

    def _deserialize(self, plan: bytes) -> CudaEngine | None:
        self.calls.append("deserialize")
        if self.refuses:
            self.logger.log(self.ILogger.Severity.ERROR, "the plan is for\n another GPU")
            return None
        return self.engine


@pytest.fixture
def library(gpu):
    return Library(gpu)


@pytest.fixture
def parts(gpu, library, tmp_path):
    plan = tmp_path / "unet.plan"
    plan.write_bytes(b"plan")
    residency, workspace = WeightResidency(gpu), SharedWorkspace(gpu)

    def make(spec: EngineSpec = SPEC) -> Engine:
        return Engine(plan, spec, library, residency, tmp_path / "unet.onnx")

    return SimpleNamespace(make=make, residency=residency, workspace=workspace, gpu=gpu)


def session(parts: Any, rows: int = 2) -> TensorRTSession:
    return TensorRTSession(parts.gpu, parts.make(), STAGE, {"rows": rows}, parts.workspace)


def test_the_order_of_calls(parts, library):
    stage = session(parts)
    stage.inputs["sample"][...] = 3
    stage.run()
    assert library.calls == [
        "deserialize",
        "load weights",
        "context",
        "profile 1",
        "shape sample (2, 4)",
        "address sample",
        "address noise_pred",
        "scratch",
        "run",
    ]
    assert (stage.outputs["noise_pred"][:1] == 3).all()
    library.calls.clear()
    stage.run()
    assert library.calls == ["run"], "addresses, shapes and memory are set once"


def test_engines_share_scratch_and_hear_when_it_moves(parts, library):
    small, large = session(parts, rows=1), session(parts, rows=2)
    small.run()
    first, second = library.contexts
    large.run()
    assert parts.workspace.nbytes == 8192
    assert first.memory == second.memory == (parts.workspace.address, 8192)
    version = small.address_version
    parts.workspace.reserve(1 << 20)
    assert small.address_version != version, "captured work is stale"
    small.run()
    assert first.memory[1] == 1 << 20


def test_weights_leave_and_come_back_without_a_new_context(parts, library):
    stage = session(parts)
    stage.run()
    version = stage.address_version
    stage.release()
    assert not library.engine.weights_loaded and stage.address_version != version
    away = stage.address_version
    library.calls.clear()
    stage.run()
    assert library.calls == ["load weights", "run"] and stage.address_version not in (version, away)


def test_an_engine_that_leaves_whole_takes_its_contexts_along(parts, library):
    """As plain TensorRT's: a context keeps its engine's weights on the GPU."""
    library.defers = False
    engine = parts.make()
    library.engine.weights_loaded = True  # with the plan
    two = TensorRTSession(parts.gpu, engine, STAGE, {"rows": 2}, parts.workspace)
    one = two.with_dims({"rows": 1})
    two.run()
    one.run()
    contexts = [weakref.ref(context) for context in library.contexts]
    library.contexts.clear()
    two.release()
    gc.collect()
    assert [context() for context in contexts] == [None, None]
    one.run()
    assert library.calls.count("deserialize") == 2 and len(library.contexts) == 1


def test_a_shape_that_is_not_taken_is_told(parts, library):
    library.takes_shapes = False
    with pytest.raises(RuntimeError, match=r"unet.plan does not take \[2, 4\] for sample"):
        session(parts)


def test_a_size_that_is_part_of_another(parts, library):
    """As the deep features of a U-Net have, at half its width."""
    halves = ("rows", "latent_width/2")
    tensors = (TensorSpec("sample", "float32", halves),), (TensorSpec("noise_pred", "float32", halves),)
    spec = replace(SPEC, inputs=tensors[0], outputs=tensors[1], profiles=())
    stage = replace(STAGE, inputs=tensors[0], outputs=tensors[1])
    library.engine._shape = (-1, -1)
    TensorRTSession(parts.gpu, parts.make(spec), stage, {"rows": 2, "latent_width": 8}, parts.workspace)
    assert "shape sample (2, 4)" in library.calls


def test_low_vram_makes_room_before_another_stage_loads(parts, library):
    first = session(parts)
    first.run()
    parts.residency.exclusive = True
    library.calls.clear()
    parts.make()
    assert library.calls[:2] == ["unload weights", "deserialize"]


def test_a_batch_of_its_own_over_the_same_weights(parts, library):
    two = session(parts)
    one = two.with_dims({"rows": 1})
    assert library.calls.count("deserialize") == library.calls.count("load weights") == 1
    assert one.device_inputs["sample"].shape == (1, 4)
    with pytest.raises(UserError, match="guidance batches 1, 2, not for rows 3"):
        two.with_dims({"rows": 3})


def test_refusals(parts, library):
    library.refuses = True
    with pytest.raises(UserError, match=r"refuses the engine unet.plan \(the plan is for another GPU\)"):
        parts.make()
    library.refuses = False
    other = replace(STAGE, outputs=(TensorSpec("eps", "float32", ("rows", 4)),))
    with pytest.raises(UserError, match="other inputs or outputs than stage unet"):
        TensorRTSession(parts.gpu, parts.make(), other, {"rows": 2}, parts.workspace)
    stage = session(parts)
    library.fails = True
    with pytest.raises(UserError, match=r"stage unet failed in TensorRT \(unet.plan did not run: out of something\): "):
        stage.run()


def test_what_does_not_fit_lets_another_backend_take_over(parts, library):
    """``device="auto"`` goes on with the next one after a :class:`BackendError` only."""
    library.has_room = False
    with pytest.raises(BackendError, match=r"the weights of unet\.plan cannot be loaded .*--low-vram"):
        parts.make()
    library.has_room = True
    engine = parts.make()
    library.has_room = False
    with pytest.raises(BackendError, match=r"unet.plan cannot be prepared for running \(out of memory\): close"):
        TensorRTSession(parts.gpu, engine, STAGE, {"rows": 2}, parts.workspace)


def test_compiled_kernels_are_kept_whenever_there_are_more(parts, library, tmp_path):
    """A second size compiles kernels of its own, in the same process."""

    class Cache:
        content = b"one"

        def serialize(self) -> bytes:
            return self.content

    cache = JitCache(tmp_path / "unet.jit")
    cache._cache = Cache()
    engine = parts.make()
    engine._jit_cache = cache
    stage = TensorRTSession(parts.gpu, parts.make(), STAGE, {"rows": 2}, parts.workspace)
    stage._engine = engine
    for content in (b"one", b"one, two"):
        Cache.content = content
        stage.finished()
        assert read_cache(cache.path) == content


def test_binding_checks_shape_and_type(parts):
    stage = session(parts)
    with pytest.raises(ValueError, match=r"sample is float32 \[2, 4\], not float32 \[1, 4\]"):
        stage.bind("sample", stage.device_inputs["sample"][:1])
    with pytest.raises(ValueError, match="must be contiguous"):
        stage.bind_input("sample", np.zeros((4, 2), np.float32).T)


def test_the_stand_in_has_no_name_that_the_library_lacks():
    trt = pytest.importorskip("tensorrt_rtx")
    pairs = ((Context, trt.IExecutionContext), (CudaEngine, trt.ICudaEngine))
    for ours, real in pairs:
        assert {n for n in vars(ours) if not n.startswith("_")} <= set(dir(real)), real
    assert {"defer_weights_loading", "deserialize_cuda_engine"} <= set(dir(trt.Runtime))
    assert {"set_execution_context_allocation_strategy", "set_runtime_cache"} <= set(dir(trt.IRuntimeConfig))
    assert {"weights_loaded", "num_io_tensors"} <= set(dir(trt.ICudaEngine))
    assert trt.DynamicShapesKernelSpecializationStrategy.EAGER
    assert hasattr(trt.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
    assert trt.ExecutionContextAllocationStrategy.USER_MANAGED and trt.TensorIOMode.INPUT
    assert {trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.WARNING}
