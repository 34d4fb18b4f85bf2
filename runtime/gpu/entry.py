"""The GPU backends as ``runtime/backends.py`` lists them: is it there, does the bundle fit, load a stage."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from ...errors import DerivedFileError, UserError
from ..bundle.bundle import Bundle
from ..bundle.engines import Machine, build_command, check_engine, engine_graph, engines_fit, find_engine, staleness
from ..bundle.manifest import STAGES, EngineSpec
from ..bundle.stage_graphs import Availability, graph_files, stage_graph
from ..install import install_hint
from ..session import Session
from . import onnx_cuda_start
from .cards import is_data_centre
from .device import Gpu, open_gpu, probe
from .jit_cache import CacheKey, JitCache
from .memory import SharedWorkspace, WeightResidency
from .preflight import Need, need_of_engines, need_of_graphs

if TYPE_CHECKING:
    from ..backends import Choice

TITLES = {"tensorrt-rtx": "TensorRT for RTX", "tensorrt": "TensorRT"}
_EXTRAS = {"tensorrt-rtx": "rtx", "tensorrt": "tensorrt"}


@lru_cache(maxsize=1)
def shared() -> tuple[Gpu, SharedWorkspace, WeightResidency]:
    """What all sessions of the process share: the GPU with its stream, the scratch block, the turns of weights."""
    gpu = open_gpu()
    return gpu, SharedWorkspace(gpu), WeightResidency(gpu)


def probe_engines(backend: str) -> Availability:
    """Is the library installed, and a GPU there?"""
    from .tensorrt_session import MODULES, load_module

    title, install = TITLES[backend], install_hint(_EXTRAS[backend])
    status = probe()
    if status.found and backend == "tensorrt-rtx" and is_data_centre(status.compute_capability):
        # Whether it is installed does not matter then.
        return Availability(
            False,
            f"{title} runs no engines on compute capability {status.compute_capability}; TensorRT does: "
            f"{install_hint(_EXTRAS['tensorrt'])}, then consisti2v build BUNDLE --target current --backend tensorrt",
        )
    # Its libraries are not loaded where there is no GPU: that would cost every start a second.
    if importlib.util.find_spec(MODULES[backend]) is None:
        return Availability(False, f"{title} is not installed: {install}")
    if not status.found:
        return Availability(False, status.reason)
    try:
        module = load_module(backend)
    except Exception as error:
        # Beside ImportError: the module may be there and its libraries not.
        return Availability(False, f"{title} cannot be imported ({error}): {install}")
    return Availability(True, f"{title} {module.__version__}; {status.reason}")


def machine(backend: str) -> Machine:
    """This machine, as an engine of the backend sees it; after a usable probe."""
    from .tensorrt_session import load_module

    return Machine(probe().compute_capability, {backend: load_module(backend).__version__})


def fit_engines(backend: str, bundle: Bundle, precision: str) -> Availability:
    """Does the bundle hold engines for this machine, built from the graphs it holds?"""
    found = engines_fit(bundle.manifest, backend, precision, machine(backend))
    if not found.usable:
        return found
    for stage in STAGES:
        engine = find_engine(bundle.manifest, stage, backend, precision, machine(backend))
        assert engine is not None
        reason = staleness(engine, bundle.manifest)
        if reason is not None:
            return Availability(False, f"{reason}: {build_command(engine)}")
        try:
            _require_engine(bundle, engine)
        except DerivedFileError as error:
            return Availability(False, str(error), failed=True)
    return found


def _require_engine(bundle: Bundle, engine: EngineSpec) -> None:
    """Refuse an engine whose files, or the graph's that it takes its weights from, are missing or damaged."""
    graph = engine_graph(engine, bundle.manifest)
    weights = graph_files(graph) if engine.stripped and graph is not None else ()
    bundle.require((engine.file, *weights), build_command(engine))


def load_engine(
    backend: str, bundle: Bundle, stage: str, dims: Mapping[str, int], threads: int | None, precision: str
) -> Session:
    """One stage from its engine.

    Raises:
        UserError: no engine fits, its file is missing or damaged, or the library refuses it.
    """
    from .tensorrt_session import Engine, TensorRTSession, load_module

    module = load_module(backend)
    spec = find_engine(bundle.manifest, stage, backend, precision, machine(backend))
    if spec is None:
        raise UserError(f"{engines_fit(bundle.manifest, backend, precision, machine(backend)).reason}.")
    sizes = with_nearest_rows(spec, dims)
    check_engine(spec, bundle.manifest, machine(backend), sizes)
    _require_engine(bundle, spec)
    gpu, workspace, residency = shared()
    gpu.make_current()
    graph = engine_graph(spec, bundle.manifest) or bundle.manifest.stages[stage]
    onnx, cache = bundle.graph(graph), _jit_cache(bundle, spec, gpu)
    engine = Engine(partial(bundle.read, spec.file), spec, module, residency, onnx, cache)
    return TensorRTSession(gpu, engine, graph, sizes, workspace)


def with_nearest_rows(spec: EngineSpec, dims: Mapping[str, int]) -> dict[str, int]:
    """The sizes with a guidance batch that the engine has: the largest within what is asked for, or its smallest; more
    rows then run in turns, and fewer leave some unused.
    """
    held = sorted(profile.rows for profile in spec.profiles if profile.rows is not None)
    if not held or "rows" not in dims:
        return dict(dims)
    return {**dims, "rows": max((rows for rows in held if rows <= dims["rows"]), default=held[0])}


def _jit_cache(bundle: Bundle, spec: EngineSpec, gpu: Gpu) -> JitCache | None:
    """What this GPU compiled before, beside the engine; TensorRT compiles when it builds and has none."""
    if spec.backend != "tensorrt-rtx":
        return None
    library = f"{spec.backend} {spec.version}"
    key = CacheKey(bundle.manifest.files[spec.file].sha256, gpu.name, gpu.driver_version(), library)
    return JitCache(bundle.file(spec.file).with_name(key.file_name(spec.stage)))


def probe_onnx() -> Availability:
    """Has ONNX Runtime its CUDA provider, is a GPU there, and does it start?"""
    try:
        import onnxruntime
    except ImportError as error:
        return Availability(False, f"onnxruntime cannot be imported ({error}): {install_hint('cuda')}")
    version = f"onnxruntime {onnxruntime.__version__}"
    if onnx_cuda_start.PROVIDER not in onnxruntime.get_available_providers():
        return Availability(
            False,
            f"{version} has no CUDA provider: pip uninstall onnxruntime, then {install_hint('cuda')}",
        )
    status = probe()
    if not status.found:
        return Availability(False, f"{version} has its CUDA provider, but {status.reason}", failed=True)
    reason = onnx_cuda_start.why_not_started()
    if reason is not None:
        return Availability(
            False,
            f"{version} has its CUDA provider, but it does not start ({reason}): install cuDNN 9 and the CUDA "
            "libraries, as with pip install 'onnxruntime-gpu[cuda,cudnn]'",
            failed=True,
        )
    return Availability(True, f"{version}; {status.reason}")


def load_onnx(bundle: Bundle, stage: str, dims: Mapping[str, int], threads: int | None, precision: str) -> Session:
    """One stage in ONNX Runtime's CUDA provider."""
    from .onnx_cuda_session import OnnxCudaGraph, OnnxCudaSession

    gpu, _, residency = shared()
    gpu.make_current()
    spec = stage_graph(bundle, stage, precision)
    return OnnxCudaSession(gpu, OnnxCudaGraph(gpu, residency, bundle.graph(spec), precision), spec, dims)


def need(bundle: Bundle, choice: Choice, stages: tuple[str, ...], dims: Mapping[str, int], rows: int) -> Need:
    """What these stages need of the GPU's memory as the chosen backend runs them.

    Args:
        dims: sizes of dynamic dimensions.
        rows: of the loop's buffers: guidance branches times videos.
    """
    name, precision = choice.backend.name, choice.precision
    if name not in TITLES:
        graphs = {stage: stage_graph(bundle, stage, precision) for stage in stages}
        return need_of_graphs(bundle, graphs, dims, rows)
    found = {stage: find_engine(bundle.manifest, stage, name, precision, machine(name)) for stage in stages}
    return need_of_engines(bundle, {s: e for s, e in found.items() if e is not None}, dims, rows)
