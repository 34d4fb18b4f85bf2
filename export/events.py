"""Who is told what happens while engines and graphs in other precisions are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..runtime.bundle.manifest import EngineSpec
    from .precision.variant import StageVariant


@dataclass(frozen=True)
class Events:
    """Functions to call; by default nobody is told anything."""

    phase: Callable[[str], None] = lambda phase: None
    """What is being done from now on."""
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    """Within a phase: what, steps done, steps in all."""
    variant: Callable[[StageVariant], None] = lambda variant: None
    """What a stage's graph in another precision became."""
    engine: Callable[[EngineSpec, dict[str, Any]], None] = lambda engine, facts: None
    """What a stage's engine became, with its facts."""
    notice: Callable[[str], None] = lambda line: None
    """Who is waited for, what was lost, which engines fit their graphs no more: a line each."""
