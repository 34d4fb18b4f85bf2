"""Memory of one stage: weights, activations by liveness, and an estimate of scratch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .fusion import Kernel
from .graph_shapes import Graph


@dataclass(frozen=True)
class MemoryElements:
    """Elements to multiply by the precision's width."""

    weights: int
    activations: int
    """Most elements alive at once, inputs and outputs of the graph included: those are bound for good."""
    scratch: int
    """The largest kernel's inputs and outputs once more, as a change of layout (NCHW to NHWC) takes. An estimate."""


def stage_memory(graph: Graph, kernels: Sequence[Kernel]) -> MemoryElements:
    """Memory of a graph whose kernels run in this order, each tensor kept until its last reader is done."""
    last_use: dict[str, int] = {}
    for index, kernel in enumerate(kernels):
        last_use |= dict.fromkeys((*kernel.reads, *kernel.writes), index)
    bound = {name: graph.tensors[name].size for name in graph.floats((*graph.inputs, *graph.outputs))}
    alive = peak = sum(bound.values())
    for index, kernel in enumerate(kernels):
        alive += sum(size for name, size in kernel.writes.items() if name not in bound)
        peak = max(peak, alive)
        done = {name for name in (*kernel.reads, *kernel.writes) if last_use[name] == index and name not in bound}
        alive -= sum(graph.tensors[name].size for name in done)
    weights = sum(graph.tensors[name].size for name in graph.weights if graph.tensors[name].floating)
    return MemoryElements(weights, peak, max((kernel.read + kernel.written for kernel in kernels), default=0))
