"""The kernels an ideal engine makes of a graph: one per product, attention or norm, with what follows fused to it.

Traffic is counted per kernel. A tensor that only its own kernel reads is never written; slices, transposes and
expansions are ways of reading a tensor, not copies. Caches are not modelled: what one kernel writes and the next reads
passes through memory twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .flops import node_flops
from .graph_shapes import Graph, Node
from .kinds import ANCHORS, RESHAPES, node_kind

_WINDOWS = {*RESHAPES, "Transpose", "Slice", "Split", "Expand"}


@dataclass
class Kernel:
    """One fused kernel; sizes in elements."""

    kind: str
    nodes: list[Node] = field(default_factory=list)
    flops: int = 0
    weights: int = 0
    reads: dict[str, int] = field(default_factory=dict)
    """Tensor of another kernel, or input of the graph -> elements read."""
    writes: dict[str, int] = field(default_factory=dict)
    needs: set[int] = field(default_factory=set)
    """Every kernel that must run before, by number."""

    @property
    def read(self) -> int:
        return sum(self.reads.values())

    @property
    def written(self) -> int:
        return sum(self.writes.values())


def fuse(graph: Graph) -> list[Kernel]:
    """The kernels of a graph, in an order they can run in."""
    kernels: list[Kernel] = []
    # Tensor -> the tensor it is a window on; tensor -> number of the kernel that makes it.
    roots: dict[str, str] = {}
    makers: dict[str, int] = {}
    for node in graph.nodes:
        if is_window(graph, node):
            roots |= dict.fromkeys(node.outputs, roots.get(node.inputs[0], node.inputs[0]))
            continue
        if not graph.floats(node.outputs):
            continue
        sizes: dict[int, int] = {}
        for root in (roots.get(name, name) for name in graph.floats(node.inputs)):
            if root in makers:
                sizes[makers[root]] = max(sizes.get(makers[root], 0), graph.tensors[root].size)
        if node.op in ANCHORS or not sizes:
            number = len(kernels)
            kernels.append(Kernel(node_kind(graph, node)))
        else:
            number = _host(kernels, sizes)
        kernels[number].nodes.append(node)
        _require(kernels, number, {source for source in sizes if source != number})
        makers |= dict.fromkeys(node.outputs, number)
    for number in range(len(kernels)):
        _count(graph, kernels, number, roots, makers)
    for name in graph.outputs:
        root = roots.get(name, name)
        if root in makers:
            kernels[makers[root]].writes[root] = graph.tensors[root].size
    return _in_order(kernels)


def is_window(graph: Graph, node: Node) -> bool:
    """Whether a node's outputs can be read straight from its first input's place."""
    if node.op == "Gather":
        # A scalar index selects one slice.
        return graph.tensors[node.inputs[1]].shape == ()
    return node.op in _WINDOWS


def elements_read(graph: Graph, node: Node, name: str) -> int:
    """Elements of one input that a node looks at: of a table only the rows it takes."""
    size = graph.tensors[name].size
    takes_part = node.op in ("Gather", "Slice", "Split") and name == node.inputs[0]
    return min(size, sum(graph.tensors[output].size for output in node.outputs)) if takes_part else size


def _host(kernels: list[Kernel], sizes: dict[int, int]) -> int:
    """The source that a node is fused to: the one with the most to read that no other source waits for."""
    free = [number for number in sizes if not any(number in kernels[other].needs for other in sizes)]
    return max(free, key=lambda number: (sizes[number], number))


def _require(kernels: list[Kernel], number: int, sources: set[int]) -> None:
    """Note that kernel `number`, and all that wait for it, need `sources` and all that these need."""
    needs = sources.union(*(kernels[source].needs for source in sources))
    if not needs <= kernels[number].needs:
        for index, kernel in enumerate(kernels):
            if index == number or number in kernel.needs:
                kernel.needs |= needs


def _count(graph: Graph, kernels: list[Kernel], number: int, roots: dict[str, str], makers: dict[str, int]) -> None:
    """Fill in one kernel's FLOPs, weights and reads, and the writes of the kernels it reads from."""
    kernel = kernels[number]
    weights: dict[str, int] = {}
    windows = set()
    for node in kernel.nodes:
        kernel.flops += node_flops(graph, node)
        for name in graph.floats(node.inputs):
            root = roots.get(name, name)
            if makers.get(root) == number or name in windows:
                continue
            windows.add(name)
            limit = graph.tensors[root].size
            taken = weights if root in graph.weights else kernel.reads
            taken[root] = min(taken.get(root, 0) + min(elements_read(graph, node, name), limit), limit)
            if root in makers:
                kernels[makers[root]].writes[root] = limit
    kernel.weights = sum(weights.values())


def _in_order(kernels: list[Kernel]) -> list[Kernel]:
    """Kernels as near to the graph's order as their needs allow."""
    placed: dict[int, None] = {}

    def place(number: int) -> None:
        # What a kernel needs is complete, so its needs in order of how much they need themselves can all run.
        for other in sorted(kernels[number].needs - placed.keys(), key=lambda other: len(kernels[other].needs)):
            placed[other] = None
        placed[number] = None

    for number in range(len(kernels)):
        if number not in placed:
            place(number)
    return [kernels[number] for number in placed]
