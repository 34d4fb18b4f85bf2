"""Backends in order of preference: which can run a bundle on this machine, and why the others cannot.

``doctor`` prints this table, ``ImageToVideo(device=..., precision=...)`` chooses from it. A backend is a name and three
functions, so a new one is one entry of :data:`BACKENDS`; its packages are imported only when it is asked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from ..errors import UserError
from .bundle.bundle import Bundle
from .bundle.manifest import PRECISIONS
from .bundle.stage_graphs import Availability, has_graphs, stage_graph
from .gpu import entry as gpu
from .install import install_hint
from .openvino import backend as openvino_backend
from .session import OnnxCpuSession, Session

_log = logging.getLogger("consisti2v_rt")

DEVICES = ("auto", "cpu", "cuda", "openvino")


@dataclass(frozen=True)
class Backend:
    """One way to run the stages of a bundle."""

    name: str
    title: str
    device: str
    """cuda, openvino or cpu."""
    precisions: tuple[str, ...]
    """What it is given where no precision is asked for, best first; then what else it takes."""
    automatic: bool
    """Whether device "auto" may choose it: what it makes is what the exact path makes, or a GPU is why one came."""
    probe: Callable[[], Availability]
    """Is what it needs installed and present on this machine?"""
    fits: Callable[[Bundle, str], Availability]
    """Does this bundle hold what it needs, in this precision, for this machine? Asked where the probe is usable."""
    load: Callable[[Bundle, str, Mapping[str, int], int | None, str], Session]
    """bundle, stage, sizes of dynamic dimensions, threads, precision -> the loaded stage."""


@dataclass(frozen=True)
class Choice:
    """A backend and a precision for a bundle, and why these."""

    backend: Backend
    precision: str
    reason: str

    def load(self, bundle: Bundle, stage: str, dims: Mapping[str, int], threads: int | None = None) -> Session:
        """One stage, loaded and ready for these sizes."""
        return self.backend.load(bundle, stage, dims, threads, self.precision)


# -- the backends --------------------------------------------------------------------------------------------------


def _probe_onnx_cpu() -> Availability:
    try:
        import onnxruntime
    except ImportError as error:
        return Availability(False, f"onnxruntime cannot be imported ({error}): {install_hint()}")
    return Availability(True, f"onnxruntime {onnxruntime.__version__}: exact in float32, needs no GPU")


def _load_onnx_cpu(
    bundle: Bundle, stage: str, dims: Mapping[str, int], threads: int | None, precision: str
) -> OnnxCpuSession:
    spec = stage_graph(bundle, stage, precision)
    return OnnxCpuSession(bundle.graph(spec), spec, dims, threads)


_ENGINE_PRECISIONS = ("fp16", "bf16", "fp32", "fp8", "int8")


def _engine_backend(backend: str) -> Backend:
    return Backend(
        backend,
        f"{gpu.TITLES[backend]} engine",
        "cuda",
        _ENGINE_PRECISIONS,
        True,
        partial(gpu.probe_engines, backend),
        partial(gpu.fit_engines, backend),
        partial(gpu.load_engine, backend),
    )


BACKENDS: tuple[Backend, ...] = (
    _engine_backend("tensorrt-rtx"),
    _engine_backend("tensorrt"),
    Backend(
        "onnxruntime-cuda",
        "ONNX Runtime CUDA",
        "cuda",
        ("fp16", "fp32", "bf16", "int8", "fp8"),
        True,
        gpu.probe_onnx,
        has_graphs,
        gpu.load_onnx,
    ),
    Backend(
        "onnxruntime-cpu",
        "ONNX Runtime CPU",
        "cpu",
        ("fp32", "fp16", "int8", "fp8"),
        True,
        _probe_onnx_cpu,
        has_graphs,
        _load_onnx_cpu,
    ),
    # Never chosen by itself: "auto" gives the same numbers whatever else is installed.
    Backend(
        "openvino",
        "OpenVINO",
        "openvino",
        openvino_backend.PRECISIONS,
        False,
        openvino_backend.probe,
        openvino_backend.fits,
        openvino_backend.load,
    ),
)


# -- the choice ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A line of ``doctor``'s table."""

    backend: Backend
    used: bool
    reason: str
    precision: str
    """What it would run in."""


def table(
    bundle: Bundle | None = None,
    device: str = "auto",
    precision: str | None = None,
    without: Collection[str] = (),
) -> list[Row]:
    """Every backend with the reason it is or is not used; the first usable one is. Without a bundle, the machine
    alone is judged. `without`: names of those that were tried and failed.
    """
    rows: list[Row] = []
    for backend in BACKENDS:
        found, chosen = _judge(backend, bundle, precision)
        wanted = backend.automatic if device == "auto" else backend.device == device
        failed = backend.name in without
        taken = found.usable and wanted and not failed and not any(row.used for row in rows)
        reason = found.reason + ("; it was tried and does not load this bundle" if failed else "")
        if found.usable and not wanted:
            reason += f"; used with --device {backend.device}" if device == "auto" else f"; not what {device} asks for"
        rows.append(Row(backend, taken, reason, chosen))
    return rows


def check_device(device: str) -> None:
    """Refuse an unknown device.

    Raises:
        UserError: the name is none of :data:`DEVICES`.
    """
    if device not in DEVICES:
        raise UserError(f"device {device!r} is unknown: choose {', '.join(DEVICES)}.")


def choose(bundle: Bundle, device: str = "auto", precision: str | None = None, without: Collection[str] = ()) -> Choice:
    """The first backend that can run this bundle. One that is installed and does not start is passed over with a
    warning.

    Args:
        device: auto, cpu, cuda or openvino. "auto" takes a GPU where one can be used, else the processor.
        precision: fp32, fp16, bf16, int8, fp8; None: the best of what the backend and the bundle have.
        without: names of backends that were tried and failed.

    Raises:
        UserError: nothing fits; the sentence gives every backend's reason.
    """
    check_device(device)
    if precision is not None and precision not in PRECISIONS:
        raise UserError(f"precision {precision!r} is unknown: choose {', '.join(PRECISIONS)}.")
    reasons: list[str] = []
    for backend in BACKENDS:
        if backend.name in without or not (backend.automatic if device == "auto" else backend.device == device):
            continue
        found, chosen = _judge(backend, bundle, precision)
        if found.usable:
            return Choice(backend, chosen, found.reason)
        if found.failed and device == "auto":
            _log.warning("%s is not used: %s.", backend.title, found.reason.rstrip("."))
        reasons.append(f"{backend.title}: {found.reason.rstrip('.')}")
    raise UserError(f"nothing can run this bundle with device {device}: {'; '.join(reasons) or 'no backend for it'}.")


def load_in_full_precision(
    bundle: Bundle, choice: Choice, stage: str, dims: Mapping[str, int], threads: int | None
) -> tuple[Session, str]:
    """One stage in float32 or, failing that, bfloat16 (which has float32's range), for where half precision overflows.

    The chosen backend is tried first, then the others of its device, then the processor, which always can.

    Returns:
        The session, and what it runs in: "fp32 on ONNX Runtime CPU".

    Raises:
        UserError: none of them loads it; the sentence is the last one's.
    """
    others = [backend for backend in BACKENDS if backend is not choice.backend]
    candidates = [choice.backend, *(other for other in others if other.device == choice.backend.device)]
    candidates += [other for other in others if other.device == "cpu" and other not in candidates]
    failure: UserError | None = None
    for backend in candidates:
        for precision in ("fp32", "bf16"):
            if precision not in backend.precisions or precision == choice.precision or not backend.probe().usable:
                continue
            try:
                session = backend.load(bundle, stage, dims, threads, precision)
            except UserError as error:
                failure = error
                continue
            return session, f"{precision} on {backend.title}"
    raise failure or UserError(f"nothing on this machine can run stage {stage} in fp32: install onnxruntime.")


def _judge(backend: Backend, bundle: Bundle | None, precision: str | None) -> tuple[Availability, str]:
    """Whether the backend can run the bundle, and in which precision."""
    try:
        present = backend.probe()
    except Exception as error:
        # A package that is damaged raises whatever it likes; the others still run.
        reason = (str(error).strip().splitlines() or [""])[0]
        present = Availability(False, f"it cannot be imported ({type(error).__name__}: {reason})", failed=True)
    if not present.usable or bundle is None:
        return present, precision or backend.precisions[0]
    if precision is not None and precision not in backend.precisions:
        return Availability(False, f"it runs {', '.join(backend.precisions)}, not {precision}"), precision
    first: Availability | None = None
    for candidate in [precision] if precision else backend.precisions:
        found = backend.fits(bundle, candidate)
        if found.usable:
            return Availability(True, f"{present.reason}; {candidate}"), candidate
        first = first or found
    assert first is not None
    return first, precision or backend.precisions[0]
