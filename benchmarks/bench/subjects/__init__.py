"""What a child process can time. A subject is built from a plain dictionary, which is all that the parent sends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypedDict

ProgressCallback = Callable[[float], None]


class Run(TypedDict):
    """One run's seconds."""

    seconds: float
    parts: dict[str, float]
    """Of the stages, where there are any."""
    device_seconds: float | None
    """By the device's own events."""


class Subject(Protocol):
    """Loaded once, run often. `report` takes the share that is done, 0 to 1."""

    def load(self, report: ProgressCallback) -> dict[str, Any]:
        """Facts worth recording."""

    def run(self, number: int, report: ProgressCallback) -> Run:
        """One run; number 0 is the first of the process."""

    def output(self, path: str, report: ProgressCallback) -> None:
        """Write what the last run made to an .npy file."""


def make_subject(options: Mapping[str, Any]) -> Subject:
    """The subject of a name, ``options["subject"]``, with the other options as its arguments."""
    arguments = dict(options)
    name = arguments.pop("subject")
    if name == "published":
        from .published import PublishedForward

        return PublishedForward(**arguments)
    if name == "session":
        from .session import SessionForward

        return SessionForward(**arguments)
    if name == "torch":
        from .torch_probe import TorchProbe

        return TorchProbe()
    from .video import WholeVideo

    return WholeVideo(**arguments)
