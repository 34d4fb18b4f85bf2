"""The work of one stage, as amounts to be timed: fused into kernels, and node by node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass

from .flops import node_flops
from .fusion import elements_read, fuse
from .graph_shapes import Graph
from .kinds import KINDS, RESHAPES, node_kind
from .memory import MemoryElements, stage_memory


@dataclass(frozen=True)
class Work:
    """What one kernel or node does; sizes in elements, so that one count serves every precision."""

    kind: str
    flops: int
    weights: int
    read: int
    written: int


@dataclass(frozen=True)
class StageCosts:
    """A stage's work, by kind and size. Equal pieces are counted, not repeated."""

    kernels: dict[Work, int]
    """With everything fused that can be: the least traffic."""
    nodes: dict[Work, int]
    """Each node on its own: the most."""
    memory: MemoryElements

    @property
    def flops(self) -> int:
        return sum(work.flops * count for work, count in self.kernels.items())


@dataclass(frozen=True)
class KindTotal:
    """One row of the table by kind; sizes in elements."""

    kind: str
    kernels: int
    flops: int
    weights: int
    traffic: int
    """Weights read, inputs read, outputs written."""


def count_stage(graph: Graph) -> StageCosts:
    """FLOPs, weights and traffic of a graph, and the memory it needs."""
    kernels = fuse(graph)
    fused = Counter(Work(k.kind, k.flops, k.weights, k.read, k.written) for k in kernels)
    single = Counter(work for _, work in node_works(graph))
    return StageCosts(_ordered(fused), _ordered(single), stage_memory(graph, kernels))


def _ordered(works: Counter[Work]) -> dict[Work, int]:
    return dict(sorted(works.items(), key=lambda item: (KINDS.index(item[0].kind), *astuple(item[0])[1:])))


def node_works(graph: Graph) -> Iterable[tuple[str, Work]]:
    """Every node that computes or moves something, by name, in order."""
    for node in graph.nodes:
        outputs = graph.floats(node.outputs)
        if node.op in RESHAPES or not outputs:
            continue
        inputs = {name: elements_read(graph, node, name) for name in graph.floats(node.inputs)}
        weights = sum(size for name, size in inputs.items() if name in graph.weights)
        written = sum(graph.tensors[name].size for name in outputs)
        work = Work(node_kind(graph, node), node_flops(graph, node), weights, sum(inputs.values()) - weights, written)
        yield node.name, work


def totals_by_kind(works: dict[Work, int]) -> list[KindTotal]:
    """Sums by kind, in the order of :data:`KINDS`; kinds that do not occur are left out."""
    rows = []
    for kind in KINDS:
        items = [(work, count) for work, count in works.items() if work.kind == kind]
        if items:
            weights = sum(work.weights * count for work, count in items)
            rows.append(
                KindTotal(
                    kind,
                    sum(count for _, count in items),
                    sum(work.flops * count for work, count in items),
                    weights,
                    weights + sum((work.read + work.written) * count for work, count in items),
                )
            )
    return rows
