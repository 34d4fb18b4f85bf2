"""A stage of the bundle, ready to become one ONNX graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass
class StageExport:
    """One stage, ready to export."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    """Random example inputs, by name, in the order of the graph's inputs."""
    outputs: list[str]
    axes: dict[str, dict[int, str]] = field(default_factory=dict)
    """Input or output -> axis -> name of its dynamic size; empty for a static export."""
    arrange: Callable[[list[Any]], tuple[Any, ...]] = tuple
    """Arranges one value per input as the arguments of the module."""
