"""The parts of a device run that each have a process of their own: name -> function of the bundle and its options.

Each returns what JSON can hold, and raises UserError where the machine cannot do it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _machine(bundle: Path) -> dict[str, Any]:
    from importlib.metadata import distributions

    from ...runtime.backends import table
    from ...runtime.bundle.bundle import Bundle
    from ...runtime.gpu.device import probe

    rows = table(Bundle.open(bundle, verify=False), "cuda")
    words = ("cuda", "nvidia", "tensorrt", "onnx", "torch", "numpy", "polygraphy")
    installed = {d.metadata["Name"]: d.version for d in distributions()}
    return {
        "gpu": vars(probe()),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {
            name: number for name, number in sorted(installed.items()) if any(w in name.lower() for w in words)
        },
        "backends": [{"backend": row.backend.title, "used": row.used, "reason": row.reason} for row in rows],
    }


def _copy(bundle: Path, folder: str) -> str:
    from .engines import bundle_copy

    return str(bundle_copy(bundle, Path(folder)))


def _engine(bundle: Path, target: str) -> dict[str, Any]:
    from .engines import try_target

    return try_target(bundle, target)


def _choices(bundle: Path) -> list[list[str]]:
    """Backend and precision of everything that runs the bundle on this GPU, the best first."""
    from ...errors import UserError
    from ...runtime.backends import BACKENDS
    from ...runtime.bundle.bundle import Bundle
    from .parity import cuda_backends

    opened = Bundle.open(bundle, verify=False)
    found = [[backend.name, precision] for backend, precision in cuda_backends(opened)]
    if not found:
        reasons = (f"{b.title}: {b.probe().reason.rstrip('.')}" for b in BACKENDS if b.device == "cuda")
        raise UserError(f"nothing here runs a bundle on a GPU ({'; '.join(reasons)}).")
    return found


def _parity(bundle: Path, backend: str, precision: str) -> dict[str, Any]:
    from .parity import LIMITS, stage_parity
    from .videos import find_backend

    errors = stage_parity(bundle, find_backend(backend), precision)
    worst = max(errors.values())
    limit = LIMITS[precision]
    return {"limit": limit, "within": worst <= limit, "worst": worst, "relative_l2": errors}


def _video(bundle: Path, **options: Any) -> dict[str, Any]:
    from .videos import compare_video

    return compare_video(bundle, **options)


def _device_noise(bundle: Path, backend: str, precision: str) -> dict[str, Any]:
    from .videos import device_noise

    return device_noise(bundle, backend, precision)


def _inspector(bundle: Path) -> dict[str, Any]:
    from .inspection import inspect_engines

    return inspect_engines(bundle)


def _compare(bundle: Path) -> dict[str, Any]:
    from .inspection import compare_with_onnxruntime

    return compare_with_onnxruntime(bundle)


def _stripped(bundle: Path, folder: str) -> dict[str, Any]:
    from .stripped import refit_round_trip

    return refit_round_trip(bundle, Path(folder))


def _calibrated(bundle: Path, precision: str) -> dict[str, Any]:
    from .calibrated import calibrated_engine

    return calibrated_engine(bundle, precision)


PARTS: dict[str, Callable[..., Any]] = {
    "machine": _machine,
    "copy": _copy,
    "engine": _engine,
    "choices": _choices,
    "parity": _parity,
    "video": _video,
    "device noise": _device_noise,
    "inspector": _inspector,
    "compare": _compare,
    "stripped": _stripped,
    "calibrated": _calibrated,
}
