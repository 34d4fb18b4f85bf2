"""``consisti2v doctor``: what is installed, what would run, and why."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table

_RUNTIME = ("numpy", "onnxruntime", "tokenizers", "pillow", "av", "typer", "rich")
_EXTRAS = {
    "export": ("torch", "diffusers", "transformers", "onnx", "onnxscript", "safetensors", "huggingface-hub"),
    "cuda": ("onnxruntime-gpu",),
    "rtx": ("tensorrt-rtx", "cuda-python"),
    "tensorrt": ("tensorrt", "cuda-python"),
}


def doctor() -> None:
    """Show what is installed, which providers there are, what would be used and why."""
    console = Console()
    console.print(
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    )
    packages = Table("part", "package", "version", "", title="packages", title_justify="left")
    for package in _RUNTIME:
        found = _version(package)
        # Both distributions hold the same module.
        if package == "onnxruntime" and found is None and _version("onnxruntime-gpu"):
            found = f"{_version('onnxruntime-gpu')} (onnxruntime-gpu)"
        packages.add_row("runtime", package, found or "missing", "" if found else "pip install consisti2v-rt")
    for extra, names in _EXTRAS.items():
        for package in names:
            found = _version(package)
            packages.add_row(f"[{extra}]".replace("[", "\\["), package, found or "-", _advice(extra, found))
    console.print(packages)
    backends = Table("backend", "used", "why", title="sessions", title_justify="left")
    for backend, used, why in _backends():
        backends.add_row(backend, "yes" if used else "no", why)
    console.print(backends)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _advice(extra: str, found: str | None) -> str:
    return "" if found else f"optional: pip install 'consisti2v-rt\\[{extra}]'"


def _backends() -> list[tuple[str, bool, str]]:
    """Every session backend in order of preference: name, whether a generation would use it, and why."""
    try:
        import onnxruntime

        providers = onnxruntime.get_available_providers()
    except ImportError as error:
        return [("ONNX Runtime CPU", False, f"onnxruntime cannot be imported ({error})")]
    rows = [
        (
            f"ONNX Runtime {provider.removesuffix('ExecutionProvider')}",
            False,
            "present, but this version runs on the processor",
        )
        for provider in providers
        if provider != "CPUExecutionProvider"
    ]
    if "CPUExecutionProvider" in providers:
        rows.append(
            ("ONNX Runtime CPU", True, f"onnxruntime {onnxruntime.__version__}: exact in float32, needs no GPU")
        )
    return rows
