"""Kernels that TensorRT for RTX compiled on this machine, kept beside the engine so that the next start is quick.

One file for each engine, GPU, driver and library version. It is replaced whole, under a lock, and carries its own
SHA-256: a reader in another process sees the old one or the new one, and a damaged one counts as none.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.file_lock import locked

_log = logging.getLogger("consisti2v_rt")
_MAGIC = b"consisti2v jit cache 1\n"


@dataclass(frozen=True)
class CacheKey:
    """What compiled kernels depend on."""

    engine_sha256: str
    gpu: str
    """Its name, as the driver gives it."""
    driver: str
    library: str
    """EngineBackend and version."""

    def file_name(self, stage: str) -> str:
        """Readable, and different for every key."""
        digest = hashlib.sha256("\n".join((self.engine_sha256, self.gpu, self.driver, self.library)).encode())
        words = "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-") for part in (self.gpu, self.driver))
        return f"{stage}.{words}.{digest.hexdigest()[:12]}.jit"


def read_cache(path: Path) -> bytes | None:
    """The kept bytes; None where there are none, or they are damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    start = len(_MAGIC)
    digest, data = content[start : start + 32], content[start + 32 :]
    if not content.startswith(_MAGIC) or hashlib.sha256(data).digest() != digest:
        _log.debug("%s is damaged: kernels are compiled anew", path)
        return None
    return data


def write_cache(path: Path, data: bytes) -> bool:
    """Keep the bytes; whether that was possible. A folder that is read-only costs only time at the next start."""
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with locked(path.with_name(f".{path.name}.lock")):
            try:
                temporary.write_bytes(_MAGIC + hashlib.sha256(data).digest() + data)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        _log.debug("%s cannot be kept (%s)", path, error)
        return False
    return True


class JitCache:
    """The cache of one engine, for :class:`~.gpu.tensorrt_session.Engine`.

    Args:
        path: the cache's file; see :meth:`CacheKey.file_name`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cache: Any | None = None
        self._kept: bytes | None = None

    def attach(self, config: Any) -> None:
        """Give a runtime configuration what was kept; the library refuses what another machine compiled."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            data = read_cache(self.path)
            if data is not None and self._cache.deserialize(data):
                self._kept = data
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Keep what the library has compiled by now, unless that is what is kept already."""
        if self._cache is None:
            return
        data = bytes(memoryview(self._cache.serialize()))
        if data != self._kept and write_cache(self.path, data):
            self._kept = data
