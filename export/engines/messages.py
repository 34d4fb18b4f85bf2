"""What the builder says: errors that it logs without raising, and the sizes that it only tells its log."""

from __future__ import annotations

import logging
import re
from typing import Any

from .api import TensorRT

_log = logging.getLogger("consisti2v_rt")
_LINK = re.compile(r"\(?\b(?:(?:see|visit)\s+)?(?:https?://|www\.)\S*", re.IGNORECASE)
_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")


class Messages:
    """Collected while a network is parsed and built."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.activation_bytes: list[int] = []
        """Device memory of one context, in the order of the profiles."""
        self.weight_bytes: int | None = None

    def add(self, severity: str, text: str) -> None:
        """One message, by the name of its severity."""
        line = " ".join(text.split())
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(line)
        elif severity == "WARNING":
            self.warnings.append(line)
            _log.debug("builder: %s", line)
        elif match := _ACTIVATIONS.search(line):
            self.activation_bytes.append(int(match[1]))
        elif match := _WEIGHTS.search(line):
            self.weight_bytes = int(match[1])

    def reason(self) -> str:
        """The first error."""
        return self.errors[0] if self.errors else "no reason given"


def plain_words(text: str) -> str:
    """The first line of what a library says, for a sentence: without links and control characters, not too long."""
    line = (text.strip().splitlines() or [""])[0]
    line = _LINK.sub("", "".join(character if character.isprintable() else " " for character in line))
    return " ".join(line.split())[:300].rstrip(". ") or "no reason given"


def make_logger(library: TensorRT, messages: Messages) -> Any:
    """A logger of this library that fills `messages`."""

    class Logger(library.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            messages.add(severity.name, message)

    return Logger()
