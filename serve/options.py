"""What a server is told at its start, with the limits that it puts on requests."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

GIB = 2**30
MIB = 2**20
_LORA = re.compile(r"(?P<name>[\w.-]{1,64})=(?P<file>.+)", re.ASCII)
_KEEP = re.compile(r"(?P<count>\d+(\.\d+)?)(?P<unit>h|GB)")


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Options of ``consisti2v serve``; its help says what each means."""

    bundles: tuple[str, ...]
    data: Path
    host: str = "127.0.0.1"
    port: int = 8000
    devices: tuple[str, ...] = ("auto",)
    """One worker process each: auto, cpu, openvino, cuda or cuda:N."""
    precision: str | None = None
    threads: int | None = None
    verify: bool = True
    previews: bool = True
    max_queue: int = 100
    """Jobs that wait; those that run do not count."""
    max_batch: int = 1
    keep_seconds: float = 24 * 3600
    keep_bytes: float = 10 * GIB
    time_limit: float = 3600
    """Seconds of one video."""
    memory_limit: float | None = None
    """Bytes of a worker's resident memory."""
    max_upload: int = 32 * MIB
    max_image_pixels: int = 50_000_000
    max_frame_pixels: int = 1024 * 1024
    max_steps: int = 200
    max_clips: int = 8
    max_prompt: int = 2000
    drain: float = 10
    """Seconds that a running job gets to end when the server is told to stop."""
    api_key: str | None = None
    allow_urls: tuple[str, ...] = ()
    """Hosts that images may be fetched from."""
    loras: tuple[tuple[str, Path], ...] = ()
    """LoRA files by the names that clients know them by."""
    cors: tuple[str, ...] = ()
    """Origins of other sites whose pages may use the API."""


def parse_keep(texts: Sequence[str]) -> dict[str, float]:
    """``24h`` and ``10GB`` as the fields of :class:`ServerOptions`; what is not named keeps its default.

    Raises:
        UserError: a text of another form, or a limit named twice.
    """
    limits: dict[str, float] = {}
    for text in texts:
        match = _KEEP.fullmatch(text)
        if match is None:
            raise UserError(f"--keep {text!r} is not possible: give hours or gigabytes, as 24h or 10GB.")
        name, factor = ("keep_seconds", 3600.0) if match["unit"] == "h" else ("keep_bytes", 1e9)
        if name in limits:
            raise UserError("--keep names one limit twice: give hours once and gigabytes once.")
        limits[name] = float(match["count"]) * factor
    return limits


def parse_loras(texts: Sequence[str]) -> tuple[tuple[str, Path], ...]:
    """``style=style.safetensors`` as names and absolute paths.

    Raises:
        UserError: a text of another form, a name given twice, or no such file.
    """
    loras: dict[str, Path] = {}
    for text in texts:
        match = _LORA.fullmatch(text)
        if match is None:
            raise UserError(f"--lora {text!r} is not possible: give NAME=FILE, as style=style.safetensors.")
        name, path = match["name"], Path(match["file"]).absolute()
        if name in loras:
            raise UserError(f"--lora names {name} twice: give each file a name of its own.")
        if not path.is_file():
            raise UserError(f'--lora {name}: "{path}" is no file: give a LoRA in safetensors.')
        loras[name] = path
    return tuple(loras.items())


def is_loopback(host: str) -> bool:
    """Whether an address to bind to is reached from this machine alone."""
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


def check_options(options: ServerOptions, *, no_auth: bool) -> None:
    """Refuse options that do not fit together.

    Raises:
        UserError: another address than this machine's own without a key, or a limit that is not possible.
    """
    if not is_loopback(options.host) and options.api_key is None and not no_auth:
        raise UserError(
            f"--host {options.host} can be reached from other machines: give --api-key-file FILE, or say --no-auth if "
            "everybody who reaches it may use it."
        )
    for name in ("drain", "time_limit", "keep_seconds", "keep_bytes"):
        value = getattr(options, name)
        if not math.isfinite(value) or value < 0:
            raise UserError(f"--{name.replace('_', '-')} {value:g} is not possible: give a number from 0 on.")
