"""``consisti2v doctor``: what is installed, what would run, and why."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..backends import Row, check_device, table
from ..bundle import Bundle
from ..errors import BackendError
from .console import make_console

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
    check_device(device)
    opened = Bundle.open(bundle, verify=False) if bundle else None
    console = make_console()
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
            packages.add_row(f"[{extra}]", package, found or "-", _advice(extra, found))
    console.print(packages)
    backends = Table("backend", "device", "used", "why", title="sessions, in order of preference", title_justify="left")
    failed: set[str] = set()
    while True:
        rows = table(opened, device, without=failed)
        used = next((row for row in rows if row.used), None)
        refused = _does_not_load(opened, used)
        if refused is None:
            break
        assert used is not None
        failed.add(used.backend.name)
        console.print(f"{used.backend.title} was tried: {refused}", soft_wrap=True)
    for row in rows:
        backends.add_row(row.backend.title, row.backend.device, "yes" if row.used else "no", row.reason)
    console.print(backends)


def _does_not_load(bundle: Bundle | None, used: Row | None) -> str | None:
    """Why a GPU's backend that fits does not load a stage of the bundle, the smallest one; None: nothing speaks
    against it, or nothing was tried.
    """
    if bundle is None or used is None or used.backend.device != "cuda":
        return None
    model = bundle.manifest.model
    height, width = model.height // model.vae_scale_factor, model.width // model.vae_scale_factor
    dims = {"rows": 1, "latent_height": height, "latent_width": width, "height": model.height, "width": model.width}
    try:
        used.backend.load(bundle, "conditioning", dims, None, used.precision)
    except BackendError as error:
        return str(error)
    return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _advice(extra: str, found: str | None) -> str:
    return "" if found else f"optional: pip install 'consisti2v-rt[{extra}]'"
