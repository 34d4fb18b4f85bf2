"""Launching compiled kernels on a GPU through cuda.core. Needs a driver, no compiler."""

from __future__ import annotations

from typing import Any

from .sources import SOURCES


class LoadedKernels:
    """The entry points of one kernel source, loaded on the current device.

    Args:
        name: a kernel of :data:`~.sources.SOURCES`.
        cubin: from :func:`~.compile.compile_cubin`, for this device's architecture.

    Raises:
        ValueError: there is no such kernel.
    """

    def __init__(self, name: str, cubin: bytes) -> None:
        from cuda.core import ObjectCode

        if name not in SOURCES:
            raise ValueError(f"Unknown kernel {name!r}: choose one of {', '.join(SOURCES)}.")
        self.source = SOURCES[name]
        self._code = ObjectCode.from_cubin(cubin, name=name)
        self._kernels = {entry.name: self._code.get_kernel(entry.name) for entry in self.source.entry_points}

    def launch(self, stream: Any, entry: str, /, **values: Any) -> None:
        """Launch an entry point on a stream (or into a graph being captured); sizes of 0 launch nothing.

        Args:
            stream: cuda.core's Stream or GraphBuilder.
            entry: its name.
            values: all its arguments by name; pointers as ints, cuda.core Buffers, or None for null.

        Raises:
            ValueError: as :meth:`~.signatures.EntryPoint.call`.
        """
        from cuda.core import LaunchConfig, launch

        addressed = {name: int(value.handle) if hasattr(value, "handle") else value for name, value in values.items()}
        call = self.source.entry_point(entry).call(**addressed)
        if not call.is_empty:
            launch(stream, LaunchConfig(grid=call.grid, block=call.threads), self._kernels[entry], *call.values)
