"""What a measurement ran on, without names of hosts, users or folders."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...locations import ROOT
from ...runtime.install import install_hint
from .device_meter import describe_gpus

_PACKAGE = "consisti2v-rt"
_VERSIONS = (
    _PACKAGE,
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "torch",
    "tensorrt-rtx",
    "tensorrt",
    "cuda-python",
    "cuda-bindings",
    "cuda-core",
    "nvidia-cuda-nvrtc",
)
# Instruction sets that decide how fast float32 and half precision can be on a processor.
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "amx_int8", "asimdhp", "bf16", "sve")


def describe_machine() -> dict[str, Any]:
    """Processor, memory, operating system, GPUs."""
    psutil = require("psutil")
    return {
        "cpu": _cpu_name(),
        "architecture": platform.machine(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "instruction_sets": processor_flags(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "gpus": describe_gpus(),
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


def runtime_bytes() -> dict[str, int]:
    """Installed size of the runtime without extras: bytes by distribution, as they lie on this disk."""
    require("packaging")
    from packaging.requirements import Requirement

    sizes: dict[str, int] = {}
    waiting = [_PACKAGE]
    while waiting:
        name = waiting.pop()
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        key = _canonical(distribution.metadata["Name"])
        if key in sizes:
            continue
        sizes[key] = _own_bytes() if key == _PACKAGE else _distribution_bytes(distribution)
        for text in distribution.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def require(module: str) -> Any:
    """Import a package of the bench extra.

    Raises:
        UserError: it is not installed.
    """
    try:
        return __import__(module)
    except ImportError:
        raise UserError(f"measuring needs {module}: {install_hint('bench')}.") from None


def _distribution_bytes(distribution: importlib.metadata.Distribution) -> int:
    paths = (Path(str(file.locate())) for file in distribution.files or [])
    return sum(path.stat().st_size for path in paths if path.is_file())


def _own_bytes() -> int:
    """This package as a wheel installs it: code and assets of the sub-packages, wherever they lie."""
    folders = [ROOT, *(init.parent for init in ROOT.glob("[a-z]*/__init__.py"))]
    files = set(ROOT.glob("*.py"))
    for folder in folders[1:]:
        files |= {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    # Records of measurements, the tests and the checkpoints are not installed.
    left_out = (ROOT / "benchmarks" / "results", ROOT / "tests", ROOT / "models")
    return sum(path.stat().st_size for path in files if not any(path.is_relative_to(folder) for folder in left_out))


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    if sys.platform == "darwin":
        import subprocess

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
