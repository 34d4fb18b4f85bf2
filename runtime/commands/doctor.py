"""``consisti2v doctor``: what would run, on which device; what is installed, and why not more."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Annotated

import typer

from ...errors import BackendError
from ..backends import Row, check_device, table
from ..bundle.bundle import Bundle
from .console import make_table, table_console
from .packages import PURPOSES, Part, install_line, parts

_DEVICES = {"cuda": "the GPU", "cpu": "the processor", "openvino": "the processor"}


def doctor(
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", "-b", help="Judge for this bundle (folder or name): its engines and precisions."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or openvino: as 'generate' would be told.")] = "auto",
) -> None:
    """Show what would run and on which device, what is installed, and why other backends are not used."""
    check_device(device)
    opened = Bundle.open(bundle, verify=False) if bundle else None
    installed = parts()
    rows, tried = _judge(opened, device)
    lines = [
        _verdict(next((row for row in rows if row.used), None), device, installed[""]),
        *tried,
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "",
        "packages",
        *(_line(extra, installed[extra]) for extra in ("", *PURPOSES)),
        "",
    ]
    console = table_console()
    for line in lines:
        console.print(line, soft_wrap=True)
    backends = make_table(console, "sessions, in order of preference", "backend", "device", "used", "why")
    for row in rows:
        backends.add_row(row.backend.title, row.backend.device, "yes" if row.used else "no", row.reason)
    console.print(backends)


def _verdict(used: Row | None, device: str, runtime: Part) -> str:
    if used is None:
        which = "any device" if device == "auto" else f"device {device}"
        return f"verdict: no, nothing can run on {which}; the reasons are in the table of sessions below"
    message = f"verdict: yes, it runs on {_DEVICES[used.backend.device]}, by {used.backend.title} in {used.precision}"
    if runtime.faults:
        return f"{message}; but the installation is incomplete ({'; '.join(runtime.faults)}): {install_line('')}"
    return message


def _line(extra: str, part: Part) -> str:
    """One line: name, state, leading package with its version or what is wrong, what for, how to install it."""
    lead = ", ".join(f"{name} {version}" for name, version in list(part.found.items())[: 2 if extra else None])
    # Nothing of it is there: what is missing is all of it.
    faults = "; ".join(part.faults) if part.found else ""
    purpose = PURPOSES.get(extra, "")
    line = "  ".join(text for text in (f"{f'[{extra}]' if extra else 'runtime':<11}{part.state:<14}", purpose) if text)
    details = "; ".join(text for text in (lead, faults) if text)
    return f"  {line}{f' ({details})' if details else ''}{f': {install_line(extra)}' if part.faults else ''}"


def _judge(bundle: Bundle | None, device: str) -> tuple[list[Row], list[str]]:
    """Every backend with its reason, and a line for each that was tried and failed."""
    tried: dict[str, str] = {}
    while True:
        rows = table(bundle, device, without=set(tried))
        used = next((row for row in rows if row.used), None)
        refused = _does_not_load(bundle, used)
        if used is None or refused is None:
            return rows, list(tried.values())
        tried[used.backend.name] = f"{used.backend.title} was tried: {refused}"


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
