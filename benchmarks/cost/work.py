"""The work of a graph, as amounts to be timed: fused into the kernels of an ideal engine, and node by node; its memory.

An ideal engine makes one kernel per product, attention or norm, with what follows fused to it. Traffic is counted per
kernel. A tensor that only its own kernel reads is never written; slices, transposes and expansions are ways of reading
a tensor, not copies. Caches are not modelled: what one kernel writes and the next reads passes through memory twice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field

from ...errors import UserError
from .graph import ANCHORS, KINDS, RESHAPES, Graph, Node, Value, floats, node_flops, node_kind, shape, size

_WINDOWS = {*RESHAPES, "Transpose", "Slice", "Split", "Expand"}


@dataclass(frozen=True)
class Work:
    """What one kernel or node does; sizes in elements, so that one count serves every precision."""

    kind: str
    flops: int
    weights: int
    read: int
    written: int


Works = dict[Work, int]
"""Equal pieces are counted, not repeated."""


@dataclass(frozen=True)
class MemoryElements:
    """Elements to multiply by the precision's width."""

    weights: int
    activations: int
    """Most elements alive at once, inputs and outputs of the graph included: those are bound for good."""
    scratch: int
    """The largest kernel's inputs and outputs once more, as a change of layout (NCHW to NHWC) takes. An estimate."""


@dataclass(frozen=True)
class StageCosts:
    """A stage's work, and the memory it needs."""

    kernels: Works
    """With everything fused that can be: the least traffic."""
    nodes: Works
    """Each node on its own: the most."""
    memory: MemoryElements

    @property
    def flops(self) -> int:
        return sum(work.flops * count for work, count in self.kernels.items())


@dataclass(frozen=True)
class KindTotal:
    """Sums over one kind of work; sizes in elements."""

    kind: str
    kernels: int
    flops: int
    weights: int
    traffic: int
    """Weights read, inputs read, outputs written."""


@dataclass
class Kernel:
    """One fused kernel; sizes in elements."""

    kind: str
    nodes: list[Node] = field(default_factory=list)
    flops: int = 0
    weights: int = 0
    reads: dict[Value, int] = field(default_factory=dict)
    """Value of another kernel, or input of the graph -> elements read."""
    writes: dict[Value, int] = field(default_factory=dict)
    needs: set[int] = field(default_factory=set)
    """Every kernel that must run before, by number."""

    @property
    def work(self) -> Work:
        return Work(self.kind, self.flops, self.weights, sum(self.reads.values()), sum(self.writes.values()))


def count_stage(graph: Graph) -> StageCosts:
    """FLOPs, weights and traffic of a graph, and the memory it needs."""
    kernels = fuse(graph)
    fused, single = Counter(kernel.work for kernel in kernels), Counter(work for _, work in node_works(graph))
    return StageCosts(_ordered(fused), _ordered(single), _memory(graph, kernels))


def _ordered(works: Works) -> Works:
    return dict(sorted(works.items(), key=lambda item: (KINDS.index(item[0].kind), *astuple(item[0])[1:])))


def totals_by_kind(works: Works) -> list[KindTotal]:
    """Sums by kind, in the order of :data:`KINDS`; kinds that do not occur are left out."""
    sums: dict[str, list[int]] = {}
    for work, count in works.items():
        entry = sums.setdefault(work.kind, [0] * 4)
        for place, part in enumerate((1, work.flops, work.weights, work.weights + work.read + work.written)):
            entry[place] += part * count
    return [KindTotal(kind, *sums[kind]) for kind in KINDS if kind in sums]


def node_works(graph: Graph) -> Iterable[tuple[str, Work]]:
    """Every node that computes or moves something, by name, in order."""
    for node in graph:
        outputs = floats(node.outputs)
        if node.op_type not in RESHAPES and outputs:
            inputs = {value: _elements_read(node, value) for value in floats(node.inputs)}
            weights = sum(count for value, count in inputs.items() if value.is_initializer())
            read, written = sum(inputs.values()) - weights, sum(map(size, outputs))
            yield node.name, Work(node_kind(node), node_flops(node), weights, read, written)


def layer_work(graph: Graph, layer: str) -> Work:
    """FLOPs and traffic of the nodes that a layer's name lists, fused: what passes between them is not counted.

    Args:
        layer: as an engine's profile names it: any text with the nodes' own names in it, such as
            ``node_conv2d_3 + node_silu_1``.

    Raises:
        UserError: no node of the graph is named.
    """
    words = set(re.findall(r"[^\s,+()\[\]{}]+", layer))
    nodes = [node for node in graph if node.name in words and floats(node.outputs)]
    if not nodes:
        raise UserError(f"layer {layer[:60]!r} names no node of this graph: give the --bundle it was built from.")
    made = [value for node in nodes for value in node.outputs]
    taken: dict[Value, int] = {}
    for node in nodes:
        for value in set(floats(node.inputs)) - set(made):
            taken[value] = max(taken.get(value, 0), _elements_read(node, value))
    leaving = [value for value in made if value.is_graph_output() or not set(value.consumers()) <= set(nodes)]
    anchors = [node for node in nodes if node.op_type in ANCHORS] or [node for node in nodes if not _is_window(node)]
    weights = sum(count for value, count in taken.items() if value.is_initializer())
    return Work(
        node_kind(max(anchors or nodes, key=node_flops)),
        sum(map(node_flops, nodes)),
        weights,
        sum(taken.values()) - weights,
        sum(map(size, floats(leaving))),
    )


def fuse(graph: Graph) -> list[Kernel]:
    """The kernels of a graph, in an order they can run in."""
    kernels: list[Kernel] = []
    # Value -> the value it is a window on; value -> number of the kernel that makes it.
    roots: dict[Value, Value] = {}
    makers: dict[Value, int] = {}
    for node in graph:
        if _is_window(node):
            roots |= dict.fromkeys(node.outputs, roots.get(node.inputs[0], node.inputs[0]))
            continue
        if not floats(node.outputs):
            continue
        sizes: dict[int, int] = {}
        for root in (roots.get(value, value) for value in floats(node.inputs)):
            if root in makers:
                sizes[makers[root]] = max(sizes.get(makers[root], 0), size(root))
        if node.op_type in ANCHORS or not sizes:
            number = len(kernels)
            kernels.append(Kernel(node_kind(node)))
        else:
            # Fused to the source with the most to read that no other source waits for.
            free = [source for source in sizes if not any(source in kernels[other].needs for other in sizes)]
            number = max(free, key=lambda source: (sizes[source], source))
        kernels[number].nodes.append(node)
        _require(kernels, number, sizes.keys() - {number})
        makers |= dict.fromkeys(node.outputs, number)
    for number in range(len(kernels)):
        _count(kernels, number, roots, makers)
    for value in graph.outputs:
        root = roots.get(value, value)
        if root in makers:
            kernels[makers[root]].writes[root] = size(root)
    return _in_order(kernels)


def _is_window(node: Node) -> bool:
    """Whether a node's outputs can be read straight from its first input's place; of a Gather, by a scalar index."""
    return node.op_type in _WINDOWS or (node.op_type == "Gather" and shape(node.inputs[1]) == ())


def _elements_read(node: Node, value: Value) -> int:
    """Elements of one input that a node looks at: of a table only the rows it takes."""
    takes_part = node.op_type in ("Gather", "Slice", "Split") and value is node.inputs[0]
    return min(size(value), sum(map(size, node.outputs))) if takes_part else size(value)


def _require(kernels: list[Kernel], number: int, sources: set[int]) -> None:
    """Note that kernel `number`, and all that wait for it, need `sources` and all that these need."""
    needs = sources.union(*(kernels[source].needs for source in sources))
    if not needs <= kernels[number].needs:
        for index, kernel in enumerate(kernels):
            if index == number or number in kernel.needs:
                kernel.needs |= needs


def _count(kernels: list[Kernel], number: int, roots: dict[Value, Value], makers: dict[Value, int]) -> None:
    """Fill in one kernel's FLOPs, weights and reads, and the writes of the kernels it reads from."""
    kernel, windows = kernels[number], set[Value]()
    weights: dict[Value, int] = {}
    for node in kernel.nodes:
        kernel.flops += node_flops(node)
        for value in floats(node.inputs):
            root: Value = roots.get(value, value)
            if makers.get(root) == number or value in windows:
                continue
            windows.add(value)
            limit, taken = size(root), weights if root.is_initializer() else kernel.reads
            taken[root] = min(taken.get(root, 0) + min(_elements_read(node, value), limit), limit)
            if root in makers:
                kernels[makers[root]].writes[root] = limit
    kernel.weights = sum(weights.values())


def _in_order(kernels: list[Kernel]) -> list[Kernel]:
    """Kernels as near to the graph's order as their needs allow."""
    placed: dict[int, None] = {}
    for number, kernel in enumerate(kernels):
        if number not in placed:
            # What a kernel needs is complete, so its needs in order of how much they need themselves can all run.
            needed = sorted(kernel.needs - placed.keys(), key=lambda other: len(kernels[other].needs))
            placed |= dict.fromkeys((*needed, number))
    return [kernels[number] for number in placed]


def _memory(graph: Graph, kernels: Sequence[Kernel]) -> MemoryElements:
    """Memory of a graph whose kernels run in this order, each value kept until its last reader is done."""
    last_use: dict[Value, int] = {}
    for index, kernel in enumerate(kernels):
        last_use |= dict.fromkeys((*kernel.reads, *kernel.writes), index)
    bound = set(floats((*graph.inputs, *graph.outputs)))
    alive = peak = sum(map(size, bound))
    for index, kernel in enumerate(kernels):
        alive += sum(count for value, count in kernel.writes.items() if value not in bound)
        peak = max(peak, alive)
        used = {*kernel.reads, *kernel.writes} - bound
        alive -= sum(size(value) for value in used if last_use[value] == index)
    scratch = max((kernel.work.read + kernel.work.written for kernel in kernels), default=0)
    return MemoryElements(sum(map(size, floats(graph.initializers.values()))), peak, scratch)
