"""Launching compiled kernels on a GPU through cuda.core. Needs a driver, no compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .sources import SOURCES

_ENTRIES = {name: entry for entries in SOURCES.values() for name, entry in entries.items()}


class Kernels:
    """Launches kernels by the name of their entry point; a source is loaded when one of its is first asked for.

    Args:
        stream: where they run, in order: cuda.core's Stream.
        cubin_of: name of a source -> its cubin for this device's architecture.
    """

    def __init__(self, stream: Any, cubin_of: Callable[[str], bytes]) -> None:
        self._stream, self._cubin_of = stream, cubin_of
        self._code: dict[str, Any] = {}

    def load(self, *sources: str) -> None:
        """Load sources now, so that what cannot be loaded is found before anything runs."""
        from cuda.core import ObjectCode

        for source in sources:
            if source not in self._code:
                self._code[source] = ObjectCode.from_cubin(self._cubin_of(source), name=source)

    def launch(self, name: str, /, **values: Any) -> None:
        """Enqueue an entry point (or put it into a graph being captured); sizes of 0 launch nothing.

        Args:
            name: of the entry point.
            values: all its arguments by name; pointers as ints or objects with ``__int__``, None for null.

        Raises:
            ValueError: there is no such entry point, or as :meth:`~.sources.EntryPoint.call`.
        """
        from cuda.core import LaunchConfig, launch

        if name not in _ENTRIES:
            raise ValueError(f"Unknown kernel {name!r}: choose one of {', '.join(_ENTRIES)}.")
        source, call = _ENTRIES[name].source, _ENTRIES[name].call(**values)
        if 0 in call.grid:
            return
        self.load(source)
        kernel = self._code[source].get_kernel(name)
        launch(self._stream, LaunchConfig(grid=call.grid, block=call.threads), kernel, *call.values)
