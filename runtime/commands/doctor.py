"""``consisti2v doctor``: what is installed, what would run, and why."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..backends import table
from ..bundle import Bundle

_RUNTIME = ("numpy", "onnxruntime", "tokenizers", "pillow", "av", "typer", "rich")
_EXTRAS = {
    "export": ("torch", "diffusers", "transformers", "onnx", "onnxscript", "safetensors", "huggingface-hub"),
    "cuda": ("onnxruntime-gpu",),
    "rtx": ("tensorrt-rtx", "cuda-core", "nvidia-cufft"),
    "tensorrt": ("tensorrt", "cuda-core", "nvidia-cufft"),
    "openvino": ("openvino",),
    "bench": ("matplotlib", "nvidia-ml-py", "psutil"),
}


def doctor(
    bundle: Annotated[
        Path | None, typer.Option("--bundle", "-b", help="Judge for this bundle: its engines and precisions.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or openvino: as 'generate' would be told.")] = "auto",
) -> None:
    """Show what is installed, which backends there are, what would be used and why."""
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
    backends = Table("backend", "device", "used", "why", title="sessions, in order of preference", title_justify="left")
    for row in table(Bundle.open(bundle, verify=False) if bundle else None, device):
        backends.add_row(row.backend.title, row.backend.device, "yes" if row.used else "no", escape(row.reason))
    console.print(backends)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _advice(extra: str, found: str | None) -> str:
    return "" if found else f"optional: pip install 'consisti2v-rt\\[{extra}]'"
