"""Callbacks of a build: engines, and graphs in other precisions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..runtime.bundle.manifest import EngineSpec
    from .precision.variant import StageVariant


@dataclass(frozen=True)
class Events:
    """The callbacks; each does nothing by default."""

    phase: Callable[[str], None] = lambda phase: None
    """A phase begins."""
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    """Progress within a phase: its subject, steps done, total steps."""
    variant: Callable[[StageVariant], None] = lambda variant: None
    """A stage's graph in another precision was written."""
    engine: Callable[[EngineSpec, dict[str, Any]], None] = lambda engine, metadata: None
    """A stage's engine was built; its facts."""
    notice: Callable[[str], None] = lambda line: None
    """A line for the user: another build is waited for, files were lost, engines are stale."""
