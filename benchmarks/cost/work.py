"""The work of a graph, as amounts to be timed: fused into the kernels of an ideal engine, and node by node; its memory.

An ideal engine makes one kernel per product, attention or norm, with what follows fused to it. Traffic is counted per
kernel. A tensor that only its own kernel reads is never written; slices, transposes and expansions are ways of reading
a tensor, not copies. Caches are not modelled: what one kernel writes and the next reads passes through memory twice.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...kernels.guidance import BRANCHES
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.manifest import STAGES
from ...runtime.files.guarded_read import RECORD, read_json
from .graph import ANCHORS, KINDS, RESHAPES, Graph, Node, Value, floats, node_flops, node_kind, read_graph, shape, size

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
    fused, single = Counter(kernel.work for kernel in kernels), Counter(_node_works(graph))
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


def _node_works(graph: Graph) -> Iterable[Work]:
    """Every node that computes or moves something, in order."""
    for node in graph:
        outputs = floats(node.outputs)
        if node.op_type not in RESHAPES and outputs:
            inputs = {value: _elements_read(node, value) for value in floats(node.inputs)}
            weights = sum(count for value, count in inputs.items() if value.is_initializer())
            read, written = sum(inputs.values()) - weights, sum(map(size, outputs))
            yield Work(node_kind(node), node_flops(node), weights, read, written)


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


# -- a whole model: counted from a bundle, or read from a small JSON table counted earlier ----------------------------

FULL_SIZE = Path(__file__).with_name("full_size.json")
"""The published size, 256 x 256 pixels, 16 frames, batch 2: counted once from a bundle of
``consisti2v export --random-weights full``. Random weights cost what trained ones do.
"""
SCHEMA_VERSION = 1
_REMEDY = "write one with 'consisti2v bench --predict --save-costs'"


@dataclass(frozen=True)
class ModelCosts:
    """Stages by name, and how often a video runs them."""

    name: str
    frames: int
    height: int
    width: int
    rows: int
    """Batch of the counted U-Net."""
    guidance: str
    stages: dict[str, StageCosts]

    @property
    def clip(self) -> dict[str, Any]:
        """All but the stages."""
        return {key: value for key, value in vars(self).items() if key != "stages"}

    def runs(self, steps: int) -> dict[str, int]:
        """How often each stage runs for one video of one clip."""
        prompts = 1 if self.guidance == "none" else 2
        unet = steps * -(-BRANCHES[self.guidance] // self.rows)
        texts = {"text_encoder": prompts, "conditioning": prompts}
        return {**texts, "vae_encoder": 1, "unet": unet, "vae_decoder": self.frames}


def load_costs(path: Path) -> ModelCosts:
    """Costs of a bundle's folder or of a saved table; weights are not read.

    Raises:
        UserError: neither of the two, or a graph whose shapes are not known.
    """
    if path.is_file():
        return _read_table(path)
    bundle = Bundle.open(path, verify=False)
    stages = {name: count_stage(stage_graph(bundle, name)) for name in STAGES}
    model = bundle.manifest.model
    rows = model.rows or BRANCHES[model.guidance]
    return ModelCosts(bundle.manifest.name, model.frames, model.height, model.width, rows, model.guidance, stages)


def stage_graph(bundle: Bundle, name: str) -> Graph:
    """One stage's graph with its shapes, without its weights; an open batch is that of the bundle's guidance."""
    return read_graph(bundle.file(bundle.manifest.stages[name].file), BRANCHES[bundle.manifest.model.guidance])


def save_table(costs: ModelCosts, path: Path) -> None:
    """Write costs as a table that :func:`load_costs` reads."""

    def rows(works: Works) -> list[list[str | int]]:
        """kind, count, FLOPs, weights, elements read, elements written."""
        return [[work.kind, count, work.flops, work.weights, work.read, work.written] for work, count in works.items()]

    stages = {
        name: {"memory": asdict(stage.memory), "kernels": rows(stage.kernels), "nodes": rows(stage.nodes)}
        for name, stage in costs.stages.items()
    }
    text = json.dumps({"schema_version": SCHEMA_VERSION, **costs.clip, "stages": stages}, indent=1)
    # One row of numbers a line: the innermost lists are joined.
    text = re.sub(r"\[\s+([^\[\]]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    path.write_text(text + "\n", encoding="utf-8")


def _read_table(path: Path) -> ModelCosts:
    try:
        data = read_json(path, RECORD(_REMEDY))
        if data.pop("schema_version") != SCHEMA_VERSION:
            raise ValueError("another schema version")
        stages = {
            name: StageCosts(_works(stage["kernels"]), _works(stage["nodes"]), MemoryElements(**stage["memory"]))
            for name, stage in data.pop("stages").items()
        }
        if missing := [name for name in STAGES if name not in stages]:
            raise ValueError(f"no stage {missing[0]}")
        return ModelCosts(**data, stages=stages)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a table of costs ({error}): {_REMEDY}.") from None


def _works(rows: list[list[Any]]) -> Works:
    works = {Work(kind, *numbers): count for kind, count, *numbers in rows}
    if unknown := {work.kind for work in works} - set(KINDS):
        raise ValueError(f"unknown kind {min(unknown)!r}")
    return works
