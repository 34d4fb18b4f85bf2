"""What a measurement ran on, without names of hosts, users or folders; memory and energy of GPU and process."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from ...errors import UserError
from ...locations import ROOT
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.typed_json import MANIFEST_NAME
from ...runtime.install import install_hint

_PACKAGE = "consisti2v-rt"
_VERSIONS = (
    *(_PACKAGE, "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "torch", "tensorrt-rtx", "tensorrt"),
    *("cuda-python", "cuda-bindings", "cuda-core", "nvidia-cuda-nvrtc"),
)
# Instruction sets that decide how fast float32 and half precision can be on a processor.
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "amx_int8", "asimdhp", "bf16", "sve")
_Value = TypeVar("_Value")


def require(module: str) -> Any:
    """Import a package of the bench extra.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"measuring needs {module.split('.')[0]}: {install_hint('bench')}.") from None


# -- the machine -------------------------------------------------------------------------------------------------------


def describe_machine() -> dict[str, Any]:
    """Processor, memory, operating system, GPUs."""
    psutil, nvml = require("psutil"), _nvml()
    gpus = [] if nvml is None else [GpuMeter(nvml, index).describe() for index in range(nvml.nvmlDeviceGetCount())]
    return {
        "cpu": _cpu_name(),
        "architecture": platform.machine(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "instruction_sets": processor_flags(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "gpus": gpus,
    }


def versions() -> dict[str, str]:
    """Python's version and those of the installed packages that take part."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def processor_flags() -> list[str]:
    """The instruction sets of note that this processor has, where the system tells (Linux)."""
    words = set(re.findall(r"\w+", _cpuinfo("flags") or _cpuinfo("Features")))
    return [flag for flag in _FLAGS if flag in words]


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(processor_flags()))


def _cpu_name() -> str:
    if sys.platform == "darwin":
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        return asked.stdout.strip() or platform.processor()
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def runtime_bytes() -> dict[str, int]:
    """Installed size of the runtime without extras: bytes by distribution, as they lie on this disk."""
    require("packaging")
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    sizes: dict[str, int] = {}
    waiting = [_PACKAGE]
    while waiting:
        try:
            distribution = importlib.metadata.distribution(waiting.pop())
        except importlib.metadata.PackageNotFoundError:
            continue
        key = canonicalize_name(distribution.metadata["Name"])
        if key not in sizes:
            installed = (Path(str(file.locate())) for file in distribution.files or [])
            files = _own_files() if key == _PACKAGE else installed
            sizes[key] = sum(path.stat().st_size for path in files if path.is_file())
            needed = map(Requirement, distribution.requires or [])
            waiting += [entry.name for entry in needed if not entry.marker or entry.marker.evaluate({"extra": ""})]
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _own_files() -> set[Path]:
    """This package as a wheel installs it: code and assets of the sub-packages, without records, tests, checkpoints."""
    left_out = (ROOT / "benchmarks" / "results", ROOT / "tests", ROOT / "models")
    found = {path for init in ROOT.glob("[a-z]*/__init__.py") for path in init.parent.rglob("*")}
    return {
        path
        for path in (*ROOT.glob("*.py"), *found)
        if "__pycache__" not in path.parts and not any(path.is_relative_to(folder) for folder in left_out)
    }


# -- the bundle --------------------------------------------------------------------------------------------------------


def file_sha256(path: Path) -> str | None:
    """None where it is not a file that can be read: what needs it says so itself."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    except OSError:
        return None


def bundle_metadata(bundle: Bundle) -> dict[str, Any]:
    """Name, hash, sizes. The manifest's hash stands for the bundle: it holds the hash of every file."""
    manifest, model = bundle.manifest, bundle.manifest.model
    return {
        "name": manifest.name,
        "sha256": file_sha256(bundle.file(MANIFEST_NAME)),
        "bytes": sum(record.bytes for record in manifest.files.values()),
        "trained": model.trained,
        "source": manifest.provenance.source,
        **{key: getattr(model, key) for key in ("frames", "height", "width", "rows", "guidance")},
    }


def now() -> str:
    """UTC, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


# -- memory and energy -------------------------------------------------------------------------------------------------


def own_peak_bytes() -> int:
    """High-water mark of this process's resident memory. On Linux ``VmHWM``: what ``getrusage`` says there includes the
    parent's memory at the fork.
    """
    if sys.platform == "linux":
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(errors="replace"))
        return int(found[1]) * 1024 if found else 0
    if sys.platform == "win32":
        return int(require("psutil").Process().memory_info().peak_wset)
    import resource

    # In bytes on macOS, in KiB elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _nvml() -> Any:
    """pynvml, initialised; None where it is not installed or finds no driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


class GpuMeter:
    """Memory and energy of one GPU, through ``nvidia-ml-py``."""

    def __init__(self, nvml: Any, index: int = 0) -> None:
        self._nvml, self._handle = nvml, nvml.nvmlDeviceGetHandleByIndex(index)
        self._idle_bytes = self._used()

    @classmethod
    def open(cls) -> GpuMeter | None:
        """The meter of the first GPU, or None where NVML, a driver or the GPU is missing."""
        nvml = _nvml()
        return cls(nvml) if nvml is not None and nvml.nvmlDeviceGetCount() else None

    def used_bytes(self, processes: Iterable[int]) -> int:
        """Device memory of these processes; where the driver does not tell processes apart (Windows), what is used
        beyond what was before.
        """
        wanted, nvml = set(processes), self._nvml
        running = self._ask(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)) or []
        known = [process.usedGpuMemory for process in running if process.pid in wanted and process.usedGpuMemory]
        return sum(known) if known else max(0, self._used() - self._idle_bytes)

    def energy_joules(self) -> float | None:
        """Energy since the driver was loaded; the counter moves some ten times a second. None before Volta."""
        millijoules = self._ask(lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        return None if millijoules is None else millijoules / 1000

    def describe(self) -> dict[str, Any]:
        """Name, driver, memory, power limit in watts, and clock limit in MHz."""
        nvml, handle = self._nvml, self._handle
        limit = self._ask(lambda: nvml.nvmlDeviceGetPowerManagementLimit(handle))
        return {
            "name": nvml.nvmlDeviceGetName(handle),
            "driver": nvml.nvmlSystemGetDriverVersion(),
            "memory_bytes": nvml.nvmlDeviceGetMemoryInfo(handle).total,
            "power_limit_watts": None if limit is None else limit / 1000,
            "max_sm_clock_mhz": self._ask(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
        }

    def _used(self) -> int:
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def _ask(self, question: Callable[[], _Value]) -> _Value | None:
        """An answer, or None where this card or driver does not give it."""
        try:
            return question()
        except self._nvml.NVMLError:
            return None
